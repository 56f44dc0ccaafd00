"""`card.json`, `card.md` and `card.html`, written beside each other."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from featdepth.evaluation.cards.blocks import markdown, page
from featdepth.evaluation.cards.document import document
from featdepth.files import write_text


def write_card(out: Path, card: dict, pictures: dict[str, str]) -> None:
    """Write the card in its three forms into `out`, each whole. pictures: data URIs by the names of images.

    Raises OSError where that is impossible.
    """
    blocks = list(document(card))
    write_text(out / "card.json", json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(out / "card.md", markdown(blocks))
    write_text(out / "card.html", page(blocks, pictures))


def command_line() -> str:
    """How this program was called, without the folder that it lies in."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
