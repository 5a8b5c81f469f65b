"""The evidence corpus: documents cut into passages, kept in an index, searched and re-ranked."""
