"""Train a head on frozen features."""
