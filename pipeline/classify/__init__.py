"""Vector to labels: zero-shot prompts and trained heads."""
