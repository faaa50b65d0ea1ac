"""What outlives a process: the ledger in a database, the shared cache in Redis."""
