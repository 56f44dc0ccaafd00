"""Score cards: what an evaluation found, how sure that is, and what it must not be taken for."""
