"""What outlives a process: the job table in a database, the shared cache in Redis."""
