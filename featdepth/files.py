"""Files: read within limits, written whole or not at all, locked against other processes."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from featdepth.errors import InputError

# Bytes of a safetensors header; a model's has 100 kB. The format allows 100 MB, which take seconds and gigabytes.
LARGEST_HEADER = 1 << 20
# The longest first: the mark of UTF-32 begins with that of UTF-16.
OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@contextmanager
def open_plain(path: str | Path, limit: int, what: str) -> Iterator[BinaryIO]:
    """A regular file of at most `limit` bytes, open for reading; `what` it should be is said in errors ("the scan").

    Raises InputError, naming the file, for one that is missing, unreadable, too large, or no plain file: a named pipe
    or a device would never end.
    """
    try:
        # Without O_NONBLOCK opening a pipe waits for somebody to write to it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise InputError(f"{path}: {what} cannot be read: not a plain file")
            if state.st_size > limit:
                raise InputError(f"{path}: {state.st_size} bytes are too many for {what} (at most {limit}); replace it")
            yield file
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read: {error.strerror}") from error


def read_bytes(path: str | Path, limit: int, what: str) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises InputError as `open_plain` does."""
    with open_plain(path, limit, what) as file:
        return file.read()


def read_text(path: str | Path, limit: int, what: str, errors: str = "replace") -> str:
    """The text of a file in UTF-8, without a byte order mark and with line ends of \n, whoever wrote it.

    All text that others may have written comes through here: editors of Windows begin files with the mark, which would
    become a part of the first word. errors: of `bytes.decode`; comments are often in another encoding. Raises
    InputError as `open_plain` does, and for UTF-16 and UTF-32; with "strict" UnicodeDecodeError.
    """
    content = read_bytes(path, limit, what)
    other = next((name for mark, name in OTHER_MARKS.items() if content.startswith(mark)), None)
    if other is None and b"\0" in content:
        zeros = sorted((content[::2].count(0), content[1::2].count(0)))
        if zeros[0] == 0 and zeros[1] > len(content) / 3:  # without a mark, of mostly ASCII
            other = "UTF-16"
    if other is not None:
        raise InputError(f"{path}: text in {other}, which is not read; save {what} as UTF-8")
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def numbered_lines(path: str | Path, limit: int, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, from 1, without blank ones and those that start with #.

    Raises InputError as `read_text` does.
    """
    for number, line in enumerate(read_text(path, limit, what).splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def read_json(path: str | Path, limit: int, what: str, **options: Any) -> Any:
    """The value in a JSON file; options: of `json.loads`.

    Raises InputError as `read_text` does, ValueError or RecursionError for what is no JSON in UTF-8.
    """
    return json.loads(read_text(path, limit, what, errors="strict"), **options)


def read_object(path: str | Path, limit: int, what: str, problem: str) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError as `read_text` does, and "<path>: <problem>" for anything else."""
    try:
        found = read_json(path, limit, what)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: {problem}")
    return found


def read_safetensors(path: str | Path, limit: int, what: str) -> bytes:
    """The content of a safetensors file, not parsed yet. Raises InputError as `read_bytes`, and for a huge header."""
    data = read_bytes(path, limit, what)
    header = int.from_bytes(data[:8], "little")
    if header > LARGEST_HEADER:
        raise InputError(f"{path}: {what} cannot be read: a header of {header} bytes is not possible; copy it again")
    return data


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A new, empty file beside `path` that takes its place when the block ends well, and else is removed.

    Makes the folder. What stood at `path` before is whole until then. Raises OSError where that is impossible.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all; see `written_whole`."""
    write_bytes(path, text.encode("utf-8"))


def user_cache_folder(name: str) -> Path | None:
    """Where `name` is kept below the user's cache folder.

    None for a user without a home, as in containers that run under a number without a name.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "featdepth" / name if os.path.isabs(base) else None


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, after waiting for any other process that holds it.

    The lock ends with the process, however that ends, and is not inherited by its children. The file stays: removing
    it would let two processes hold it.
    """
    with open(path, "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
