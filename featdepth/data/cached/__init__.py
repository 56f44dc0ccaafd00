"""Decoded frames kept on disk."""
