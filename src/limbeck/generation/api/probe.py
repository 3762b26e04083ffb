"""What a server really reveals, asked once: documentation and a status of 200 both say too much."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limbeck.errors import RecipeError
from limbeck.generation.api.protocols import MalformedError, encode, wire_format
from limbeck.generation.api.protocols.reasoning import reasoning_field
from limbeck.generation.api.teacher import LENGTH_FIELDS, api_key
from limbeck.generation.api.transport.asking import PARAMETER_NAMES, as_error, ask_json, refused_parameter
from limbeck.generation.api.transport.client import Client
from limbeck.generation.api.transport.faults import Fault, FaultKind
from limbeck.generation.request import Completion, Request, canonical
from limbeck.recipe.served import Endpoint

MANY = 50
"""So many alternatives are more than any limit in use: an endpoint that gives them has none."""

_ASKED = Request(
    messages=({"role": "user", "content": "Say hello."},),
    text="Hello, my name is",
    max_new_tokens=32,
)
_SETTINGS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 1, "stop": ("\n\n\n\n",)}

_UNNAMED = frozenset({FaultKind.BAD_REQUEST, FaultKind.PARAMETER, FaultKind.TOO_LONG})
"""Faults of a request that may be one of its settings' fault."""


@dataclass(frozen=True)
class Refusal:
    """A parameter that an endpoint refuses.

    Attributes:
        name: as :class:`~limbeck.generation.request.Request` calls it.
        said: what the endpoint says.
        value: the value that was tried; None: what is refused is the parameter, whatever its value.
    """

    name: str
    said: str
    value: Any = None


@dataclass(frozen=True)
class Capabilities:
    """What one endpoint takes and reveals.

    Attributes:
        length_field: its name for the longest answer.
        top_logprobs: alternatives a token at most; 0: none are revealed.
        sampling: whether logprobs are of the model (``pre``) or of what was sampled from (``post``); None: not known.
        token_ids: whether ids of tokens are given when they are asked for.
        echo: whether log-probabilities of the prompt are given.
        reasoning: where reasoning is: a field of the message, ``tags`` in the text, ``blocks``; None: none was seen.
        several: whether one request can bring several answers (``n``).
        usage: whether answers say how many tokens they cost.
        refused: parameters that the endpoint refuses.
        tokens: what the probe cost, as far as the endpoint says.
    """

    api: str
    model: str
    protocol: str
    length_field: str
    top_logprobs: int = 0
    sampling: str | None = None
    token_ids: bool = False
    echo: bool = False
    reasoning: str | None = None
    several: bool = False
    usage: bool = False
    refused: tuple[Refusal, ...] = ()
    tokens: int = 0

    def line(self) -> str:
        """For people."""
        sampling = {"pre": " (before sampling)", "post": " (after sampling)"}.get(self.sampling or "", "")
        many = "any number of" if self.top_logprobs >= MANY else f"up to {self.top_logprobs}"
        parts = [
            f"{many} top logprobs{sampling}" if self.top_logprobs else "no logprobs",
            "token ids" if self.token_ids else "no token ids",
            *(["logprobs of the prompt"] if self.echo else []),
            f"reasoning in {self.reasoning}" if self.reasoning else "no reasoning seen",
            *(["several answers a request"] if self.several else []),
            f"{self.length_field}" if self.protocol in ("chat", "completions") else self.protocol,
            *([] if self.usage else ["no usage"]),
            *([f"refuses {', '.join(sorted({each.name for each in self.refused}))}"] if self.refused else []),
        ]
        return f"{self.model} at {self.api}: {', '.join(parts)}"

    def check(self, request: Request) -> None:
        """Refuse a request that asks for more than the endpoint takes or reveals.

        Raises:
            RecipeError: it does; its key is relative to the section with the settings of the sampling.
        """
        given = settings_of(request)
        for refusal in self.refused:
            if refusal.name in given and refusal.value in (None, given[refusal.name]):
                raise refused_parameter(self.model, refusal.name, refusal.said)
        if request.top_logprobs > self.top_logprobs:
            has = f"at most {self.top_logprobs}" if self.top_logprobs else "none"
            raise RecipeError(
                f"{request.top_logprobs} top logprobs are asked for, and {self.model} reveals {has}",
                key=".top_logprobs",
                fix=f"Ask for {self.top_logprobs}.",
            )


def settings_of(request: Request) -> dict[str, Any]:
    """The optional parameters that a request sends: what an endpoint may refuse."""
    given = {name: getattr(request, name) for name in (*_SETTINGS, "tools", "extra")}
    return {name: value for name, value in given.items() if value not in (None, (), {})}


def probe(endpoint: Endpoint, requests: Sequence[Request] = ()) -> Capabilities:
    """Ask an endpoint with a handful of short requests what it takes and reveals.

    Args:
        endpoint: who is asked.
        requests: like those that will be sent: their parameters and tools are tried. Default: the usual parameters.

    Raises:
        RecipeError: the key is missing or refused, the model is not there, or the protocol lacks a parameter.
        BudgetError: the account has no credit.
        TeacherGoneError: the server cannot be reached, or does not serve.
    """
    return asyncio.run(_Probe(endpoint).run(requests))


class _Probe:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.format = wire_format(endpoint.protocol)
        self._key = api_key(endpoint)
        self.length = self.format.length_field(endpoint)
        self.tokens = 0
        text = endpoint.protocol == "completions"
        self.asked = replace(_ASKED, messages=()) if text else replace(_ASKED, text=None)

    async def run(self, requests: Sequence[Request]) -> Capabilities:
        async with Client() as client:
            self.client = client
            plain, completion = await self._first()
            found = Capabilities(
                self.endpoint.api,
                self.endpoint.model,
                self.endpoint.protocol,
                self.length,
                reasoning=_where(self.format.name, plain, completion),
                usage=completion.usage is not None,
            )
            refused = await self._refused(requests)
            if "top_logprobs" in self.format.takes:
                most, sampling = await self._logprobs(all(each.name != "temperature" for each in refused))
                found = replace(found, top_logprobs=most, sampling=sampling)
            if self.format.name in ("chat", "completions"):
                found = replace(
                    found,
                    token_ids=await self._reveals({"return_token_ids": True}, _has_ids),
                    several=await self._reveals({"n": 2}, _has_two),
                )
            if self.format.name == "completions":
                found = replace(found, echo=await self._reveals({"echo": True, "logprobs": 1}, _has_prompt))
        return replace(found, refused=tuple(refused), tokens=self.tokens)

    async def _post(self, body: Mapping[str, Any]) -> Any | Fault:
        """The JSON of an answer, or a fault that stayed after some tries."""
        url, headers = self.format.url(self.endpoint), self.format.headers(self._key)
        return await ask_json(self.client, url, headers, encode(body), self._key)

    async def _ask(self, request: Request) -> tuple[Any, Completion] | Fault:
        return await self._read(self.format.body(self.endpoint, request, self.length), request)

    async def _read(self, body: Mapping[str, Any], request: Request) -> tuple[Any, Completion] | Fault:
        plain = await self._post(body)
        if isinstance(plain, Fault):
            return plain
        try:
            if not isinstance(plain, dict):
                raise MalformedError("no JSON object")
            completion = self.format.completion(plain, request)
        except (MalformedError, KeyError, TypeError, ValueError, AttributeError) as error:
            return Fault(FaultKind.MALFORMED, f"not an answer of the protocol `{self.format.name}`: {error}")
        if completion.usage is not None:
            self.tokens += completion.usage.input + completion.usage.output
        return plain, completion

    async def _first(self) -> tuple[Any, Completion]:
        answer = await self._ask(self.asked)
        if isinstance(answer, Fault) and answer.kind is FaultKind.PARAMETER and answer.parameter == self.length:
            self.length = LENGTH_FIELDS.get(self.length, self.length)
            answer = await self._ask(self.asked)
        if isinstance(answer, Fault):
            raise as_error(self.endpoint, answer)
        return answer

    async def _refused(self, requests: Sequence[Request]) -> list[Refusal]:
        """Parameters that are refused: of each request, with its value; of none, the usual ones, whatever the value."""
        if not requests:
            usual = {name: value for name, value in _SETTINGS.items() if name in self.format.takes}
            return [Refusal(name, said) for name, said in (await self._settings(usual, strict=False)).items()]
        found: dict[bytes, Refusal] = {}
        tried: set[bytes] = set()
        for request in requests:
            self.format.check(self.endpoint, request)
            settings = settings_of(request)
            if (one := canonical(settings)) in tried:
                continue
            tried.add(one)
            for name, said in (await self._settings(dict(settings), strict=True)).items():
                found.setdefault(canonical([name, settings[name]]), Refusal(name, said, settings[name]))
        return list(found.values())

    async def _settings(self, settings: dict[str, Any], *, strict: bool) -> dict[str, str]:
        """Those of some parameters that are refused, with what is said. ``strict``: other faults are raised."""
        refused: dict[str, str] = {}
        while settings:
            answer = await self._ask(replace(self.asked, **settings))
            if not isinstance(answer, Fault):
                break
            name = (answer.parameter or "").split(".")[0]
            name = "extra" if name in settings.get("extra", ()) else PARAMETER_NAMES.get(name, name)
            if answer.kind is not FaultKind.PARAMETER or name not in settings:
                alone = await self._one_by_one(settings, answer, strict=strict)
                if strict and not alone:
                    raise as_error(self.endpoint, answer)
                refused |= alone
                break
            refused[name] = answer.message
            del settings[name]
        return refused

    async def _one_by_one(self, settings: Mapping[str, Any], fault: Fault, *, strict: bool) -> dict[str, str]:
        """Those that are refused alone, after all together were refused without a name. vLLM names none."""
        if strict and fault.kind not in _UNNAMED:
            return {}
        refused: dict[str, str] = {}
        for each, value in settings.items():
            alone = await self._ask(replace(self.asked, **{each: value}))
            if isinstance(alone, Fault) and (alone.kind in _UNNAMED or not strict):
                refused[each] = alone.message
        return refused

    async def _logprobs(self, tempered: bool) -> tuple[int, str | None]:
        """How many alternatives are revealed, and whether they depend on the temperature."""
        most = 0
        for number in (MANY, 20, 5, 1):
            answer = await self._ask(replace(self.asked, top_logprobs=number))
            if not isinstance(answer, Fault):
                most = max((len(token.top) for token in answer[1].logprobs or ()), default=0)
                break
        if not most or not tempered:
            return most, None
        tops: list[dict[str, float]] = []
        for temperature in (0.5, 1.5):
            answer = await self._ask(
                replace(self.asked, top_logprobs=min(most, 5), temperature=temperature, max_new_tokens=16)
            )
            if isinstance(answer, Fault) or not answer[1].logprobs:
                return most, None
            tops.append(dict(answer[1].logprobs[0].top))
        both = set(tops[0]) & set(tops[1])
        if not both:
            return most, None
        return most, "post" if any(abs(tops[0][token] - tops[1][token]) > 0.02 for token in both) else "pre"

    async def _reveals(self, more: Mapping[str, Any], has: Any) -> bool:
        body = {**self.format.body(self.endpoint, self.asked, self.length), **more}
        answer = await self._read(body, self.asked)
        return not isinstance(answer, Fault) and bool(has(answer[0], self.asked))


def _where(protocol: str, plain: Any, completion: Completion) -> str | None:
    if not completion.reasoning:
        return None
    if protocol in ("anthropic", "gemini"):
        return "blocks"
    named = reasoning_field(completion.message)
    return f"`{named[0]}`" if named else "tags"


def _has_ids(plain: Any, _: Request) -> bool:
    return bool(plain["choices"][0].get("token_ids"))


def _has_two(plain: Any, _: Request) -> bool:
    return len(plain["choices"]) == 2


def _has_prompt(plain: Any, request: Request) -> bool:
    choice = plain["choices"][0]
    values = (choice.get("logprobs") or {}).get("token_logprobs") or []
    return str(choice.get("text", "")).startswith(request.text or "") and len(values) > request.max_new_tokens
