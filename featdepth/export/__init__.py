"""A trained depth network as one file: `python -m featdepth.export`."""
