"""Files on disk: atomic folders, and a cache of rows by key."""
