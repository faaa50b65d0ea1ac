"""Query to matches: filters, ranking, relevance feedback."""
