"""Development only: the drawn demo catalogue and the training of the bundled model."""
