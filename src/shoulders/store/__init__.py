"""Files on disk: atomic folders, encodings of text, and caches by content key."""
