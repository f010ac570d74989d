"""Floor 4: the command line. Each command group is a module of its own, imported only when it is used."""
