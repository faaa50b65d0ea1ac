"""Square to vector: the model, its numeric precision, shard files."""
