"""File to RGB: find, read and decode images within their limits."""
