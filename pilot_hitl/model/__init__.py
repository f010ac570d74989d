"""Floor 0: the nouns everybody shares. Imports nothing else of this project."""
