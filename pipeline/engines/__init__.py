"""Engines on servers, and the choice among all of them."""
