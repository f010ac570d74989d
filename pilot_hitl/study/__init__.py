"""Floor 1: the study core, pure: what exists and what is true. Imports only the model."""
