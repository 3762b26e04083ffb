"""Signals of teachers that can only be called: what their servers reveal, and whether they are the same as before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, RecipeError, StoreError, TeacherGoneError, under
from limbeck.files import write_whole
from limbeck.generation.api.scoring.probe import Reveals, probe_scoring
from limbeck.models.tokenizer import token_map_fingerprint, vocabulary_size
from limbeck.pipeline.shared.base import TEACHER
from limbeck.pipeline.stored.room import home_of
from limbeck.pipeline.stored.stores import Asked, window_of
from limbeck.recipe import Endpoint, ServedTeacher, Signals, fingerprint

_OF_THE_TECHNIQUE = (".signals.k", ".temperature")
"""Keys of what the probe refuses that stand in the technique; others stand in the teacher's section."""


@dataclass(frozen=True)
class ServedSignals:
    """What is asked of a teacher that is called.

    Attributes:
        teacher, section: of the recipe.
        temperature: of the technique.
        place: of the technique in the recipe.
    """

    teacher: ServedTeacher
    section: Signals
    temperature: float
    place: str

    @property
    def key(self) -> dict[str, Any]:
        return {"endpoint": self.teacher.endpoint.identity, "k": self.section.k, "temperature": self.temperature}

    def ask(self, tokenizer: Any) -> Reveals:
        """Ask the server what it reveals. Nothing is written.

        Raises:
            RecipeError: it reveals too little.
            TeacherGoneError: it does not answer.
        """
        with _placed(self.place):
            return probe_scoring(self.teacher.endpoint, tokenizer, self.section.k, self.temperature)

    def probe(self, tokenizer: Any, run: Path, *, must_answer: bool = False) -> tuple[Reveals, list[str]]:
        """Ask the server what it reveals, and whether it is the one that answered before.

        A file beside the stores keeps what it was. Where the server is down, the file answers, unless the server
        ``must_answer``: the store may be whole.

        Returns:
            What it reveals, and what to warn of.

        Raises:
            RecipeError: it reveals too little.
            StoreError: it is another model than before.
            TeacherGoneError: it does not answer, and has to, or never did.
        """
        path = self._file(tokenizer, run)
        before = _read(path)
        try:
            found = self.ask(tokenizer)
        except TeacherGoneError as error:
            if must_answer or before is None or before.entries < self.section.k:
                raise
            return before, [f"{error.line()} Signals that are stored already can be learned"]
        if before is not None and found.is_another(before.own_P):
            raise StoreError(
                f"{found.model} at {found.api} is another model than the one whose signals are in {path.parent}",
                key=f"{self.place}.signals.folder",
                fix="Name another folder, or bring that model back",
            )
        if before is None or before.entries < found.entries:
            write_whole(path, json.dumps(asdict(found), indent=1))
        return found, []

    def asked(self, reveals: Reveals, tokenizer: Any, seq_len: int) -> Asked:
        """What is kept of it.

        Raises:
            RecipeError: it cannot read as many tokens as the recipe says.
        """
        # It is sent the last label too, and writes one token.
        longest = None if reveals.window is None else reveals.window - 2
        if self.section.context == "row" and longest is not None and seq_len > longest:
            raise RecipeError(
                f"rows have {seq_len} tokens, and {reveals.model} reads {longest}", key="data.seq_len", fix="Lower it"
            )
        with under(f"{self.place}.signals"):
            window = window_of(self.section, longest)
        identity = {name: value for name, value in self.teacher.endpoint.identity.items() if name != "protocol"}
        name = f"served-{fingerprint(identity, reveals.form, reveals.tempered)}"
        return Asked(self.section, self.temperature, name, window, vocabulary_size(tokenizer))

    def _file(self, tokenizer: Any, run: Path) -> Path:
        identity = self.teacher.endpoint.identity, self.temperature, token_map_fingerprint(tokenizer)
        return home_of(self.section, run) / f"served-{fingerprint(*identity)}.json"


@dataclass(frozen=True)
class SignalsAsking:
    """What a recipe asks of a server, before it is run.

    Attributes:
        asked: of it.
        tokenizer: the run's.
    """

    asked: ServedSignals
    tokenizer: Any

    @property
    def place(self) -> str:
        return self.asked.place

    @property
    def endpoint(self) -> Endpoint:
        return self.asked.teacher.endpoint

    def probe(self) -> Reveals:
        return self.asked.ask(self.tokenizer)


def _read(path: Path) -> Reveals | None:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Reveals(**{**plain, "own_P": tuple(plain["own_P"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def _placed(technique: str) -> Iterator[None]:
    """Complete keys of errors: of the technique, or of the teacher."""
    try:
        yield
    except LimbeckError as error:
        with under(technique if error.key in _OF_THE_TECHNIQUE else TEACHER):
            raise
