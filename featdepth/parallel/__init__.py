"""Several processes: how they are launched, decide together and share memory."""
