"""Sources of evidence: text that is put before, or after, a question."""
