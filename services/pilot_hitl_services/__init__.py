"""What runs as an endpoint: the replica of a service. Of ours it imports the model and the wire only."""
