"""How good retrieval and classification are."""
