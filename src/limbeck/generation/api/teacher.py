"""One endpoint of a chain while it is being asked."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from limbeck.errors import RecipeError
from limbeck.generation.api.protocols import encode, wire_format
from limbeck.generation.api.transport.clock import Clock
from limbeck.generation.api.transport.faults import Fault, FaultKind
from limbeck.generation.api.transport.pacing import Pacer
from limbeck.generation.journal.budget import input_bound
from limbeck.generation.journal.prices import PriceList, prices_of
from limbeck.generation.request import Request
from limbeck.recipe.served import Endpoint

LENGTH_FIELDS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}

WHY = {
    FaultKind.BILLING: "billing",
    FaultKind.KEY: "the key is refused",
    FaultKind.WITHDRAWN: "not there",
    FaultKind.TERMS: "its terms",
    FaultKind.PARAMETER: "a parameter is refused",
    FaultKind.LIMITED: "limited",
    FaultKind.OVERLOADED: "overloaded",
}
"""Why a teacher is left, for people; all else is ``down``."""


def api_key(endpoint: Endpoint) -> str | None:
    """The key in the environment variable that the endpoint names; None: it names none.

    Raises:
        RecipeError: the variable is not set, or holds what cannot be a key.
    """
    name = endpoint.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise RecipeError(
            f"the environment variable {name} is not set", key=".api_key_env", fix=f"Set it: export {name}=..."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError(
            f"the environment variable {name} does not hold a key: it has spaces or control characters",
            key=".api_key_env",
        )
    return key


@dataclass(frozen=True)
class Probed:
    """What the probe found of an endpoint, as far as it decides how requests are written.

    Attributes:
        identity: ``Endpoint.identity``.
        several: one request may ask for several samples of a prompt (``n``).
        length_field: its name for the longest answer.
    """

    identity: Mapping[str, str]
    several: bool
    length_field: str


AHEAD = 4
"""One row is written ahead for so many slots: as many as are answered while the disk is flushed."""
SEVERAL = 16
"""Samples of a prompt that one request asks for at most."""


class Asked:
    """An endpoint, its pace, and what became of it.

    Attributes:
        gone: why it is not asked any more; None: it is.
        answers: how many it gave.
        ahead: rows that are on disk as sent, and wait for their slot.
        several: how many samples of a prompt one request may ask for (``n``).
    """

    def __init__(self, endpoint: Endpoint, clock: Clock, probed: Iterable[Probed] = ()) -> None:
        self.endpoint = endpoint
        self.identity: Mapping[str, str] = endpoint.identity
        self.format = wire_format(endpoint.protocol)
        self.prices: PriceList = prices_of(endpoint)
        self._key = api_key(endpoint)
        self.url, self.headers = self.format.url(endpoint), self.format.headers(self._key)
        self.pacer = Pacer(endpoint.concurrency, endpoint.patience_seconds, clock)
        found = next((each for each in probed if each.identity == self.identity), None)
        self.length = found.length_field if found else self.format.length_field(endpoint)
        self.several = SEVERAL if found and found.several else 1
        self.ahead = asyncio.Semaphore(max(1, endpoint.concurrency // AHEAD))
        self.gone: str | None = None
        self.fault: Fault | None = None
        self.answers = 0
        self.faults: Counter[str] = Counter()
        self._other_length = LENGTH_FIELDS.get(self.length) if endpoint.protocol in ("chat", "completions") else None

    @property
    def name(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.api}"

    def body(self, request: Request, several: int = 1) -> bytes:
        """The exact bytes to send; ``several``: how many samples are asked for."""
        plain = self.format.body(self.endpoint, request, self.length)
        return encode(plain if several == 1 else {**plain, "n": several})

    def bound(self, body: bytes, request: Request, several: int = 1) -> tuple[int, int]:
        """The most tokens of the prompt and of the answers."""
        return input_bound(body), several * request.max_new_tokens

    def redact(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self._key, "***") if self._key else text

    def redact_bytes(self, raw: bytes) -> bytes:
        """``raw`` without the key, should a server send it back."""
        return raw.replace(self._key.encode("ascii"), b"***") if self._key else raw

    def learns(self, fault: Fault, used: str) -> bool:
        """Whether a refused parameter is the name of the answer's length, which has another name here."""
        if fault.kind is not FaultKind.PARAMETER or fault.parameter != used:
            return False
        if self.length == used:
            if self._other_length is None:
                return False
            self.length, self._other_length = self._other_length, None
        return True

    def leave(self, reason: str, fault: Fault | None = None) -> None:
        """Ask this teacher no more."""
        if self.gone is None:
            self.gone, self.fault = reason, fault
            self.pacer.close()
