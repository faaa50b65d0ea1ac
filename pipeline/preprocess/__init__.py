"""RGB to square: background removal, crop, padding."""
