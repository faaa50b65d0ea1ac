"""Addresses -> files: feeds and the images that they list, within limits."""
