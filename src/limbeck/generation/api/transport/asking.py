"""One question, tried until it is answered or a fault stays; and faults as errors that a user can act on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limbeck.errors import BudgetError, LimbeckError, RecipeError, TeacherGoneError
from limbeck.generation.api.transport.client import Client
from limbeck.generation.api.transport.faults import Fault, FaultKind, of_reply, parse
from limbeck.generation.api.transport.pacing import backoff
from limbeck.recipe.served import Endpoint

TRIES = 4
SECONDS = 120.0
PARAMETER_NAMES = {
    "topP": "top_p",
    "topK": "top_k",
    "stop_sequences": "stop",
    "stopSequences": "stop",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "maxOutputTokens": "max_new_tokens",
}
"""What :class:`~limbeck.generation.request.Request` calls parameters that protocols name otherwise."""
_FIXES = {
    "temperature": "Write what the endpoint allows, or `temperature: null`; it is then left to the endpoint.",
    "max_new_tokens": "Write what the endpoint allows.",
    "top_p": "Write `top_p: 1`; it is then not sent.",
    "top_k": "Write `top_k: 0`; it is then not sent.",
    "seed": "Write `seed: 0`; it is then not sent.",
}

_SAYS = {
    **dict.fromkeys((FaultKind.UNREACHABLE, FaultKind.LATE, FaultKind.CUT), "does not answer"),
    **dict.fromkeys((FaultKind.SERVER, FaultKind.OVERLOADED, FaultKind.LIMITED), "answers with an error"),
    FaultKind.MALFORMED: "answers in another form",
}
"""What an endpoint does, by the fault; of all others it refuses the request."""


async def ask_json(
    client: Client, url: str, headers: Mapping[str, str], body: bytes | None, key: str | None = None
) -> Any | Fault:
    """The JSON of an answer, or a fault that stayed after some tries.

    Args:
        client: an open one.
        url: where; ``headers``: with the key, if there is one.
        body: what is posted; None: the URL is read.
        key: is taken out of what the server says.
    """
    fault = Fault(FaultKind.UNREACHABLE, "not tried")
    for tries in range(TRIES):
        reply = await client.send(url, headers, body, SECONDS)
        if not isinstance(reply, Fault):
            broken = of_reply(reply.status, reply.headers, reply.raw, 0.0)
            if broken is None:
                return parse(reply.raw)
            reply = broken
        fault = replace(reply, message=reply.message.replace(key, "***") if key else reply.message)
        last = tries == TRIES - 1
        if last or not fault.passing or fault.kind is FaultKind.LATE or (fault.wait or 0) > SECONDS:
            break
        await asyncio.sleep(fault.wait if fault.wait is not None else backoff(tries) / 2)
    return fault


def as_error(endpoint: Endpoint, fault: Fault) -> LimbeckError:
    """A fault that stays, as an error whose key is relative to the endpoint's section."""
    said = _SAYS.get(fault.kind, "refuses the request")
    what = f"{endpoint.model} at {endpoint.api} {said}: {fault.message}"
    if fault.kind is FaultKind.BILLING:
        return BudgetError(what, fix="Add credit to the account.")
    if fault.kind is FaultKind.KEY:
        fix = f"Look at {endpoint.api_key_env}." if endpoint.api_key_env else "Name its variable in `api_key_env`."
        return RecipeError(what, key=".api_key_env", fix=fix)
    if fault.kind is FaultKind.WITHDRAWN:
        return RecipeError(what, key=".model", fix="Look at `api`, `model` and `protocol`.")
    if fault.kind is FaultKind.PARAMETER:
        return refused_parameter(endpoint.model, fault.parameter or "", fault.message, endpoint.extra)
    if fault.kind is FaultKind.TERMS:
        return TeacherGoneError(what, fix="Its terms do not allow this use; take another teacher.")
    if fault.kind in (FaultKind.BAD_REQUEST, FaultKind.MALFORMED, FaultKind.TOO_LONG):
        return RecipeError(what, key=".protocol", fix="Look at `api`, `protocol` and `extra`.")
    return TeacherGoneError(what, fix="Is the server up?")


def refused_parameter(who: str, parameter: str, said: str, extra: Mapping[str, Any] | None = None) -> RecipeError:
    """The error for a parameter that an endpoint refuses. Nothing is dropped silently: the recipe is to be changed.

    Its key is relative: to the endpoint for a field of its ``extra``, else to the section with the settings of the
    sampling.
    """
    name = parameter.split(".")[0]
    key, fix = f".{PARAMETER_NAMES.get(name, name)}", _FIXES.get(PARAMETER_NAMES.get(name, name), "Leave it out.")
    if name in (extra or {}):
        key, fix = f".extra.{name}", "Leave it out."
    return RecipeError(f"{who} refuses the parameter `{name}`: {said}", key=key, fix=fix)
