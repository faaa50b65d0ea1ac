"""The command line: parse, enqueue, show."""
