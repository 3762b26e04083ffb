"""One owner of a run folder at a time."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from limbeck.errors import RunFolderError
from limbeck.workflow import markers

LOCK = ".limbeck"
"""The file that is locked; it holds the owner's process number. A run folder is known by it, or by its markers."""

ORPHANS_SECONDS = 10.0
"""How long to wait for the workers of an owner that was killed: they hold its lock until they notice."""


def run_path(run: str) -> Path:
    """Where a recipe's run folder is.

    Raises:
        RunFolderError: there can be no such folder, or it holds other things. Nothing is made.
    """
    if "\0" in run:
        raise RunFolderError(f"{run!r} is no path", key="run", fix="Name a folder")
    try:
        path = Path(run).expanduser()
        if path.is_dir() and any(path.iterdir()) and not is_run(path):
            raise RunFolderError(f"{path} is a folder with other things in it", key="run", fix="Name a new one")
        file = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
    except OSError as error:
        raise RunFolderError(
            f"{run} cannot be read ({error.strerror})", key="run", fix="Name a folder you may write to"
        ) from None
    except RuntimeError as error:  # `~user` of an unknown user
        raise RunFolderError(f"{run!r} is no path ({error})", key="run", fix="Name a folder") from None
    if file is not None:
        raise RunFolderError(f"{file} is a file, not a folder", key="run", fix="Name a folder")
    return path


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / own).exists() for own in (LOCK, markers.FOLDER))


class RunLock:
    """A run folder that this process, and the workers that it hands the lock to, own until it is closed.

    Raises:
        RunFolderError: it cannot be written, is something else, or another process owns it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            run_path(str(folder))
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / LOCK).open("a+")
            (folder / markers.FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be written ({error.strerror})", key="run", fix="Name a folder you may write to"
            ) from None
        if not self._wait():
            owner = _owner(self._file)
            self._file.close()
            raise RunFolderError(
                f"{folder} is in use by another limbeck{f' (process {owner})' if owner else ''}",
                key="run",
                fix="Wait for it, or name another folder",
            )
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def _wait(self) -> bool:
        """Take the lock; wait only for what a killed owner left."""
        deadline = time.monotonic() + ORPHANS_SECONDS
        while not _taken(self._file):
            owner = _owner(self._file)
            if owner is None or _is_alive(owner) or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def fileno(self) -> int:
        """For workers: the lock is held as long as any process has it open."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def owner_of(folder: Path) -> int | None:
    """The process that is working on a run; None: there is none. Nothing is written.

    Workers of one that was killed do not count: they end in a moment.
    """
    try:
        with (folder / LOCK).open("r") as file:
            if _taken(file, fcntl.LOCK_SH):
                return None
            owner = _owner(file)
            return owner if owner is not None and _is_alive(owner) else None
    except OSError:
        return None


def _taken(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _owner(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read().strip()
    return int(text) if text.isdigit() else None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
