"""Depth scores: pure functions on tensors."""
