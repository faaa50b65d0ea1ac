"""Find images of an index that show the same thing, and group them."""
