"""Own video made ready for training: reading it, choosing its frames, and the record of what became of each."""
