"""The evidence corpus: documents cut into passages, kept on disk, and searched."""
