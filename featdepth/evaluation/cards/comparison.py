"""Tables of several cards, in Markdown and LaTeX; several seeds of one configuration with their mean and spread."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from featdepth.config import Parser
from featdepth.console import count
from featdepth.errors import InputError
from featdepth.evaluation.cards.blocks import DASH, between, escape_markdown, figure
from featdepth.evaluation.cards.content import FLIPS, MODEL_SCALES, metric_title
from featdepth.evaluation.cards.read_card import Card, read_card
from featdepth.metrics.depth import METRICS

MARK = "CONTAMINATED"
UNKNOWN = "leakage unknown"
SCALE_NAMES = {"median_scaled": "median", "fixed_scale": "fixed"}
FLIP_NAMES = {"plain": "off", "flip": "on"}
HEADER = ("model", "seed", "scale", "flip", *map(metric_title, METRICS), "abs_rel over drives")
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "±": r"$\pm$",
    "–": "--",
    **{character: f"\\{character}" for character in "#$%&_"},
}


class Row(NamedTuple):
    """A line of the table."""

    name: str
    seed: str  # of the training
    marks: list[str]  # what a reader has to know before the numbers
    scale: str
    flip: str
    cells: list[str]


def compare_cards(arguments: Sequence[str]) -> str:
    """The tables for the command line `arguments`: `--cards A B ...`. Raises InputError."""
    parser = Parser(prog="evaluate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--cards", nargs="+", required=True, metavar="DIR", help="folders of evaluations, or card.json")
    return tables([read_card(path) for path in parser.parse_args(arguments).cards])


def tables(cards: Sequence[Card]) -> str:
    """Both tables, and what has to be said about them. InputError for cards that cannot be compared."""
    check_comparable(cards)
    names = name_cards(cards)
    rows = [row for scale in MODEL_SCALES for flip in FLIPS for row in variant_rows(cards, names, scale, flip)]
    return "\n".join([*introduction(cards), "", markdown(rows), "", *notes(cards), "", latex(rows)])


def check_comparable(cards: Sequence[Card]) -> None:
    """Raise InputError, naming two cards and what differs, unless all were made on the same images in the same way."""
    first = cards[0]
    for card in cards[1:]:
        for name, value in first.protocol.items():
            if card.protocol[name] != value:
                raise InputError(
                    f"{card.path}: {name} {card.protocol[name]}, but {first.path} has {value}; their scores cannot be "
                    "compared, evaluate both on the same list in the same way"
                )


def name_cards(cards: Sequence[Card]) -> list[str]:
    """A name for each card: its checkpoint, and where that does not tell cards apart, the card's own path."""
    checkpoints = [card.checkpoint for card in cards]
    return [
        card.checkpoint if checkpoints.count(card.checkpoint) == 1 else f"{card.checkpoint} ({card.path})"
        for card in cards
    ]


def variant_rows(cards: Sequence[Card], names: Sequence[str], scale: str, flip: str) -> list[Row]:
    """A row for each card that has such scores, and one for each configuration of which there are several seeds."""
    rows, variant = [], (SCALE_NAMES[scale], FLIP_NAMES[flip])
    for card, name in zip(cards, names, strict=True):
        scores = card.scores[scale, flip]
        if scores is not None:
            cells = [*(figure(scores[metric].mean) for metric in METRICS), between(scores["abs_rel"].drives)]
            rows.append(Row(name, DASH if card.seed is None else str(card.seed), marks([card]), *variant, cells))
    for configuration, members in by_configuration(cards).items():
        found = [card.scores[scale, flip] for card in members]
        if distinct_seeds(members) and None not in found:
            name, seeds = f"configuration {configuration[:8]}, mean ± standard deviation", count(len(members), "seed")
            cells = [*(spread([scores[metric].mean for scores in found]) for metric in METRICS), DASH]
            rows.append(Row(name, seeds, marks(members), *variant, cells))
    return rows


def by_configuration(cards: Sequence[Card]) -> dict[str, list[Card]]:
    """The cards of models whose configuration and seed are known, by configuration, of which there are several."""
    groups = defaultdict(list)
    for card in cards:
        if card.configuration is not None and card.seed is not None:
            groups[card.configuration].append(card)
    return {configuration: members for configuration, members in groups.items() if len(members) > 1}


def distinct_seeds(cards: Sequence[Card]) -> bool:
    return len({card.seed for card in cards}) == len(cards)


def marks(cards: Sequence[Card]) -> list[str]:
    """What has to be said about these cards in a row."""
    if any(card.contaminated for card in cards):
        return [MARK]
    return [] if all(card.leakage_known for card in cards) else [UNKNOWN]


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation (of a sample: n - 1)."""
    return DASH if None in values else f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def introduction(cards: Sequence[Card]) -> list[str]:
    """What all cards have in common."""
    first = cards[0]
    how = ", ".join(f"{name} {value}" for name, value in first.protocol.items())
    return [escape_markdown(f"{count(first.images, 'image')} of {count(first.drives, 'drive')}, {how}")]


def notes(cards: Sequence[Card]) -> list[str]:
    """What the table does not say by itself."""
    lines = [
        "The last column is the 95 % interval of abs_rel over drives. Neither it nor an interval over images contains "
        "the spread over training seeds, which takes several seeds of one configuration."
    ]
    for configuration, members in by_configuration(cards).items():
        if not distinct_seeds(members):
            lines.append(
                f"Configuration {escape_markdown(configuration[:8])}: not grouped, since one seed has several cards; "
                "give one card for each seed."
            )
    if any(card.contaminated for card in cards):
        lines.append(f"{MARK}: trained on drives that it should not have seen; do not compare its scores with others.")
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    names = [f"{''.join(f'**{mark}** ' for mark in row.marks)}{escape_markdown(row.name)}" for row in rows]
    lines = [(name, row.seed, row.scale, row.flip, *row.cells) for name, row in zip(names, rows, strict=True)]
    ruler = ("---", "---", "---", "---", *["---:"] * (len(METRICS) + 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEADER, ruler, *lines))


def latex(rows: Sequence[Row]) -> str:
    """The rows as a LaTeX table, with the rules of booktabs between scales and flips."""
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{llll{'r' * (len(METRICS) + 1)}}}",
        r"\toprule",
        f"{' & '.join(map(escape_latex, HEADER))} \\\\",
    ]
    before = None
    for row in rows:
        if (row.scale, row.flip) != before:
            lines.append(r"\midrule")
            before = row.scale, row.flip
        name = "".join(rf"\textbf{{{mark}}} " for mark in row.marks) + escape_latex(row.name)
        lines.append(f"{' & '.join([name, *map(escape_latex, (row.seed, row.scale, row.flip, *row.cells))])} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def escape_latex(text: str) -> str:
    """`text` in which nothing is taken for a command."""
    return "".join(LATEX.get(character, character) for character in text)
