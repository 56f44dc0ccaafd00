"""Models in files: directories, cards, and the checkpoints of others."""
