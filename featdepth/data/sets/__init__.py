"""The other data sets, each a file, and own video."""
