"""From a film to its depth in one command, each stage of which is one of the other programs."""
