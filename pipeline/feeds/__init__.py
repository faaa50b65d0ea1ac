"""Files about products: read, understood and staged, before the database sees them."""
