"""What `imgrec check` tries, each thing once and for real.

A row is a function that returns what it saw, or raises `CheckFailed` or `CheckWarning`. A new one
needs a line in `table.py`.
"""
