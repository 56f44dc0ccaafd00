"""Messages are grammatical, and commands in them are what a shell takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from featdepth.config import parse_override
from featdepth.config.values import override
from featdepth.console import command, count


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("clip",), "0 clips"),
        (1, ("clip",), "1 clip"),
        (2, ("clip",), "2 clips"),
        (1, ("process", "processes"), "1 process"),
        (3, ("process", "processes"), "3 processes"),
    ],
)
def test_one_thing_has_no_s(number: int, words: tuple[str, ...], expected: str) -> None:
    assert count(number, *words) == expected


def test_a_shell_gives_the_words_back() -> None:
    words = ["train.py", "data.root=/a b/(1)/it's $HOME", "data.frames=[0, -1]", "--out", "Ausflug für zwei"]
    assert shlex.split(command(words)) == words
    assert command(["train.py", "data.split=time"]) == "train.py data.split=time"
    assert command(["--out", Path("-x"), Path("~x")]) == "--out ./-x './~x'"


@pytest.mark.parametrize(
    "text",
    [
        "data/one",
        "123",
        "null",
        "[x]",
        "{a}",
        "a: b",
        "x #1",
        "1e3",
        "it's",
        "'q'",
        '"q"',
        "*a",
        "!x",
        "@",
        "a\tb",
        "ö 日",
    ],
)
def test_the_command_line_gives_the_text_back(text: str) -> None:
    assert parse_override(override("data.root", text)) == ("data.root", text)


def test_plain_text_needs_no_quotes() -> None:
    assert override("data.root", Path("a b/2011_09_26")) == "data.root=a b/2011_09_26"
    assert override("data.root", "~") == "data.root=./~"
