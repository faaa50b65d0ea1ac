"""Objects in a store: S3, Google Cloud Storage, Azure, or a web server that can be listed."""
