"""Floor 2: how pilots are started."""
