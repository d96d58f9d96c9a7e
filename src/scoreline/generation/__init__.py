"""Many images from one command: shared among processes, kept in shards, written once all are there."""
