"""Floor 2: requests to people and their answers: forms, published requests, the spool, the audit."""
