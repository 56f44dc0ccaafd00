"""The arena: which of several configurations learns more, at equal steps or at equal seconds. See docs/accuracy.md."""
