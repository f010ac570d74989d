"""Floor 1: how processes talk. Messages, codec, keys, sockets, values. Imports only the model."""
