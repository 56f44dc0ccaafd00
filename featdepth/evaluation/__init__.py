"""What an evaluation does: scoring, reports, cards, refinement."""
