"""Sources of evidence: where the counts of a host's traffic come from."""
