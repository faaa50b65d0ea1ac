"""The recipe of models/imgrec-mini: how the bundled model is trained, not how it is used."""
