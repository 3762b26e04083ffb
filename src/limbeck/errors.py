"""Errors a user can act on: what is wrong, where in the recipe, and what to do about it.

Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class LimbeckError(Exception):
    """A problem the user can solve. Shown as one line; the exit code says whose problem it is.

    Args:
        what: what is wrong, in a clause, with the offending value.
        key: where in the recipe (``training.lr``), if anywhere.
        fix: what to write or do instead.
    """

    exit_code = 2

    def __init__(self, what: str, *, key: str | None = None, fix: str | None = None) -> None:
        self.what, self.key, self.fix = what, key, fix
        super().__init__(self.line())

    def line(self) -> str:
        text = f"{self.key}: {self.what}" if self.key else self.what
        if self.fix:
            text = f"{text.rstrip('.')}. {self.fix}"
        return " ".join(text.split())


class RecipeError(LimbeckError):
    """The recipe, or what it names, is wrong."""


class InputError(LimbeckError):
    """A file or folder that was named exists but cannot be used."""


class RunFolderError(LimbeckError):
    """The run folder is in use, was made by another recipe, or cannot be written."""


class DivergedError(LimbeckError):
    """A gradient became NaN or infinite."""
