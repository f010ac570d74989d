"""Everything on one node: spawner, node core, daemon, function workers."""
