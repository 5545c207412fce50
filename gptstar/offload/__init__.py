"""Models that do not fit into memory: most layers stay on disk, in their own files, and are read as they are needed."""
