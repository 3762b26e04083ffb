"""What all wire formats share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from limbeck.errors import RecipeError
from limbeck.generation.request import Completion, Outcome, Request
from limbeck.recipe.served import Endpoint

OWNED = frozenset(
    {"model", "messages", "prompt", "contents", "stream", "n", "best_of", "max_tokens", "max_completion_tokens"}
)
"""Fields of the body that `extra` may not set: the key of a row, its bound and its parsing depend on them."""


class MalformedError(Exception):
    """An answer that does not have the form of its protocol."""


class WireFormat(ABC):
    """One protocol.

    Attributes:
        name: as in ``Endpoint.protocol``.
        takes: optional attributes of a :class:`Request` that the protocol has a field for.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]]

    @abstractmethod
    def url(self, endpoint: Endpoint) -> str:
        """Where requests are posted."""

    @abstractmethod
    def authorization(self, key: str) -> dict[str, str]:
        """The header that carries the key."""

    def headers(self, key: str | None) -> dict[str, str]:
        """Headers of a request, beside those of HTTP."""
        return self.authorization(key) if key else {}

    @abstractmethod
    def fields(self, endpoint: Endpoint, request: Request, length: str) -> dict[str, Any]:
        """The body as plain data, without ``extra``; ``length`` names the field of the longest answer."""

    @abstractmethod
    def completion(self, plain: Mapping[str, Any], request: Request) -> Completion:
        """What an answer says.

        Raises:
            MalformedError: it does not have the form of the protocol.
        """

    def completions(self, plain: Mapping[str, Any], requests: Sequence[Request]) -> list[Completion]:
        """What an answer to several samples of one prompt says: at least one, at most as many as were asked for.

        The usage is the first one's. A choice without the form of the protocol is left out.

        Raises:
            MalformedError: no choice has the form of the protocol.
        """
        choices = plain.get("choices")
        if len(requests) == 1 or not isinstance(choices, list) or len(choices) < 2:
            return [self.completion(plain, requests[0])]
        found: list[Completion] = []
        problem: Exception = MalformedError("no choices")
        for choice in choices[: len(requests)]:
            usage = {"usage": plain.get("usage")} if not found else {"usage": None}
            try:
                found.append(self.completion({**plain, "choices": [choice], **usage}, requests[len(found)]))
            except (MalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
                problem = error
        if not found:
            raise problem
        return found

    def length_field(self, endpoint: Endpoint) -> str:
        """The name that the endpoint probably has for the length of an answer."""
        return "max_tokens"

    def body(self, endpoint: Endpoint, request: Request, length: str | None = None) -> dict[str, Any]:
        """The body of a request as plain data.

        Raises:
            RecipeError: the protocol cannot say what the request or ``extra`` asks for.
        """
        self.check(endpoint, request)
        fields = self.fields(endpoint, request, length or self.length_field(endpoint))
        return merged(merged(fields, endpoint.extra), request.extra)

    def check(self, endpoint: Endpoint, request: Request) -> None:
        """Refuse what the protocol has no field for: nothing is dropped silently."""
        asked = {name for name in ("temperature", "top_p", "top_k", "seed") if getattr(request, name) is not None}
        asked |= {name for name in ("stop", "tools", "top_logprobs") if getattr(request, name)}
        if missing := sorted(asked - self.takes):
            raise RecipeError(
                f"the protocol `{self.name}` has no {', no '.join(missing)}",
                key=f".{missing[0]}",
                fix="Leave it out, or use another protocol.",
            )
        if owned := sorted(OWNED & (set(endpoint.extra) | set(request.extra))):
            raise RecipeError(
                f"`{owned[0]}` cannot be set here",
                key=".extra",
                fix="Its value follows from the recipe's own settings.",
            )


def merged(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with ``more`` in it: mappings are joined, all else is replaced."""
    result = dict(fields)
    for name, value in more.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def encode(body: Mapping[str, Any]) -> bytes:
    """The bytes that are sent: UTF-8, with escapes where a text has lone surrogates."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":")).encode("ascii")


def sample_seed(request: Request) -> int | None:
    """The seed of one sample: samples of a prompt with the same seed would all be the same text."""
    if request.seed is None or request.sample == 0:
        return request.seed
    digest = hashlib.sha256(f"{request.seed}/{request.sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def clean(text: Any) -> str:
    """A text that can be written as UTF-8: lone surrogates become U+FFFD."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise MalformedError(f"a text is a {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Pairs that were escaped one by one are joined first.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def mapping(plain: Any, what: str) -> Mapping[str, Any]:
    """``plain``, if it is a JSON object."""
    if not isinstance(plain, dict):
        raise MalformedError(f"{what} is no object")
    return plain


def objects(plain: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; nothing of what is no list."""
    return [each for each in plain if isinstance(each, dict)] if isinstance(plain, list) else []


def first(plain: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of several names that has a value."""
    return next((plain[name] for name in names if plain.get(name)), None)


def ended(outcome: Outcome | None, output: int | None, request: Request) -> Outcome:
    """The outcome of an answer that does not say how it ended: by its length."""
    if outcome is not None:
        return outcome
    return Outcome.LENGTH if output is not None and output >= request.max_new_tokens else Outcome.COMPLETE


def host(endpoint: Endpoint) -> str:
    return (urlsplit(endpoint.api).hostname or "").lower()


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
