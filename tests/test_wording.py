"""Messages are grammatical, and commands in them are what a shell takes."""

from __future__ import annotations

import shlex

import pytest

from featdepth.wording import command, count


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
