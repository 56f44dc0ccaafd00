"""The one kind of error that a user can cause, and how the programs report it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

# What the operating system says when the place that we write to is the problem, not the program.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class InputError(Exception):
    """Something the user gave cannot be used; the message says in one line what, where and what to do."""


def one_line(error: BaseException) -> str:
    """The message of `error` in one line.

    A data loader worker sends its error with the whole traceback as text; the last line of it is the message.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")


def run_program(main: Callable[[], None]) -> None:
    """Run `main`; bad input or an unwritable place ends in one line on standard error, exit code 2 and no traceback."""
    try:
        main()
    except InputError as error:
        message = one_line(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        message = f"{error.filename or 'output'}: {error.strerror}; free some space or choose another directory"
    else:
        return
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
