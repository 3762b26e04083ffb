"""Errors a user can act on: what is wrong, where in the recipe, and what to do about it.

Everything else is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM: 128 + SIGINT, as shells have it."""


def counted(n: int, what: str) -> str:
    """``1 seed``, ``2,000 seeds``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def sentence(text: str) -> str:
    """With what ends a sentence at its end."""
    text = text.rstrip(".")
    return text if text.endswith(("?", "!")) else f"{text}."


class LimbeckError(Exception):
    """A problem the user can solve. Shown as one line; each kind has its exit code.

    Args:
        what: what is wrong, in a clause, with the offending value.
        key: where in the recipe (``training.lr``), if anywhere. A layer that does not know its place in the recipe
            writes a key relative to its own section, which begins with a dot (``.path``); :func:`under` completes it.
        fix: what to write or do instead.
    """

    exit_code = 2
    """2: the command, the recipe, its input or the run folder; to be changed before it is run again."""

    def __init__(self, what: str, *, key: str | None = None, fix: str | None = None) -> None:
        self.what, self.key, self.fix = what, key, fix
        super().__init__(self.line())

    def line(self) -> str:
        key = (self.key or "").lstrip(".")
        text = f"{key}: {self.what}" if key else self.what
        if self.fix:
            text = f"{sentence(text)} {self.fix}"
        return " ".join(text.split())


class RecipeError(LimbeckError):
    """The recipe, or what it names, is wrong."""


class InputError(LimbeckError):
    """A file or folder that was named exists but cannot be used."""


class RunFolderError(LimbeckError):
    """The run folder is in use, was made by another recipe, or cannot be written."""


class DivergedError(LimbeckError):
    """Gradients stayed NaN or infinite."""

    exit_code = 3


class TeacherGoneError(LimbeckError):
    """No teacher is left: all are down, limited past patience, or refuse to serve. What was answered is kept."""

    exit_code = 3


class MachineError(LimbeckError):
    """Memory or disk space ran out, or a file could not be written: the recipe may be right."""

    exit_code = 4


class StoreError(LimbeckError):
    """A store of signals is damaged, or holds other signals than were asked for."""


class MissingSignalError(StoreError):
    """A store holds no signal for a position."""


class StoreWriteError(StoreError):
    """A store of signals cannot be written: the disk is full, for example. What its manifest names is whole."""

    exit_code = 4


class BudgetError(LimbeckError):
    """The budget does not hold the next answer. What was answered is kept: with more, the run goes on."""

    exit_code = 4


@contextmanager
def under(key: str, kind: type[LimbeckError] = LimbeckError) -> Iterator[None]:
    """Complete the keys of errors that are raised inside: ``.path`` and no key become ``{key}.path`` and ``key``.

    ``kind``: only of such errors; others, that are about another part of the recipe, pass as they are.
    """
    try:
        yield
    except kind as error:
        if error.key is None or error.key.startswith("."):
            error.key = f"{key}{error.key or ''}".rstrip(".")
            error.args = (error.line(),)
        raise
