"""The whole content of `card.json`: of depth scores, or of losses where there is no ground truth."""

from __future__ import annotations

from featdepth.evaluation.cards.against import compare
from featdepth.evaluation.cards.content import (
    FORMAT,
    describe_losses,
    describe_model,
    describe_scores,
    describe_test,
    finite,
    headline,
)
from featdepth.evaluation.cards.details import describe_details
from featdepth.evaluation.cards.write_card import command_line
from featdepth.evaluation.scoring import Results, Scores
from featdepth.models.saved.provenance import versions


def depth_card(scores: Scores, median_note: str, other: Scores | None, refinement: dict | None) -> dict:
    """The card of depth scores.

    median_note: what the per-pixel median was made of; other: scores of a model on the same images to compare with;
    refinement: of `evaluate_refinement`.
    """
    known, config = scores.known, scores.subject.config
    return {
        **describe_evaluation("depth", scores, known),
        **describe_scores(known, config),
        "details": describe_details(known),
        "pixel_median_of": median_note,
        "against": None if other is None else describe_other(known, other, headline(config)),
        "refinement": finite(refinement),
    }


def loss_card(scores: Scores) -> dict:
    """The card of losses, of `score_losses`."""
    return {
        **describe_evaluation("loss", scores, scores.results),
        **describe_losses(scores.results),
        "no_ground_truth": scores.subject.missing,
        "against": None,
    }


def describe_evaluation(kind: str, scores: Scores, results: Results) -> dict:
    """What every card says, of whatever kind: which model was tested, on what, and how."""
    subject = scores.subject
    return {
        "format": FORMAT,
        "kind": kind,
        "contaminated": subject.leakage.contaminated,
        "leakage": subject.leakage.describe(),
        "model": describe_model(subject.model, subject.checkpoint, scores.about["scale_source"]),
        "test": describe_test(subject.config, results.samples, scores.skipped_images),
        "command": command_line(),
        "versions": versions(),
    }


def describe_other(this: Results, other: Scores, flip: str) -> dict:
    """What a card says of the model that this one is compared with; flip: "plain" or "flip"."""
    subject = other.subject
    return {
        "model": describe_model(subject.model, subject.checkpoint, other.about["scale_source"]),
        "leakage": subject.leakage.describe(),
        **compare(this, other.known, flip),
    }
