"""The HTTP API: the command line's questions over the same queues; nothing is computed here."""
