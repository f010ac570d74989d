"""Floor 2: the durable store and router of a user's sessions."""
