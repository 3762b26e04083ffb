"""What went wrong with a request, and what follows from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from limbeck.generation.api.transport.headers import retry_after


class FaultKind(StrEnum):
    """Why there is no answer."""

    BILLING = "billing"
    KEY = "key"
    WITHDRAWN = "withdrawn"
    TERMS = "terms"
    PARAMETER = "parameter"
    LIMITED = "limited"
    OVERLOADED = "overloaded"
    SERVER = "server"
    UNREACHABLE = "unreachable"
    LATE = "late"
    CUT = "cut"
    MALFORMED = "malformed"
    FILTERED = "filtered"
    TOO_LONG = "too_long"
    BAD_REQUEST = "bad_request"


STOPPING = frozenset({FaultKind.BILLING, FaultKind.KEY, FaultKind.WITHDRAWN, FaultKind.TERMS, FaultKind.PARAMETER})
"""The next request would fare no better."""

PASSING = frozenset(
    {
        FaultKind.LIMITED,
        FaultKind.OVERLOADED,
        FaultKind.SERVER,
        FaultKind.UNREACHABLE,
        FaultKind.LATE,
        FaultKind.CUT,
        FaultKind.MALFORMED,
    }
)
"""The same request may succeed later."""


@dataclass(frozen=True)
class Fault:
    """A request that brought no answer.

    Attributes:
        kind: why.
        message: what the server or the connection said, in a line, without keys.
        maybe_served: the answer may have been written, and billed, although it did not arrive.
        wait: seconds that the server asks to wait.
        retry: the server's own word on whether to try again (``x-should-retry``).
        parameter: the field of the body that is refused, where it is named.
    """

    kind: FaultKind
    message: str
    maybe_served: bool = False
    wait: float | None = None
    retry: bool | None = None
    parameter: str | None = None

    @property
    def stops(self) -> bool:
        """No further request is sent to this teacher."""
        return self.kind in STOPPING

    @property
    def passing(self) -> bool:
        """The row is sent again."""
        if self.stops:
            return False
        return self.kind in PASSING if self.retry is None else self.retry


def parse(raw: bytes) -> Any:
    """The JSON of a body: invalid UTF-8 becomes U+FFFD, control characters inside strings are borne. None: no JSON."""
    try:
        return json.loads(raw.decode("utf-8", errors="replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def one_line(text: str, longest: int = 300) -> str:
    """Text from outside as a short printable line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


_BILLING = re.compile(
    r"insufficient[_ ](quota|credits?|balance|funds)|billing[_ ](hard|not)|credit balance|payment required"
    r"|out of credits|spend(ing)? limit",
    re.I,
)
_QUOTA = re.compile(r"exceeded your current quota", re.I)
"""Of OpenAI it is the bill; of Gemini, whose errors have a status RESOURCE_EXHAUSTED, a rate limit."""
_TERMS = re.compile(
    r"compet(ing|itor|itive|e with)\b[^.]{0,60}\b(models?|products?|services?|systems?)\b"
    r"|\b(models?|products?|services?)\b[^.]{0,60}\bcompet(e|es|ing)\b"
    r"|\bdistill?(ation|able|ing)?\b[^.]{0,60}\b(not|never|prohibit\w*|forbid\w*|against)\b"
    r"|\b(not|never|prohibit\w*|forbid\w*)\b[^.]{0,60}\bdistill?(ation|able|ing)?\b",
    re.I,
)
_DECLINES = re.compile(
    r"\b(can ?not|can[’']t|unable|won[’']t|not (able|permitted|allowed)|prohibit\w*|against (the|our|my))\b", re.I
)
_OPENS = re.compile(
    r"(I[’']?m |I am |I )?(sorry|apologi[sz]e|can[’']t|can ?not|won[’']t|unable|not able)\b|unfortunately\b|as an ai\b"
    r"|I[’']m (unable|not able)\b|(our|the|my) (terms|policies)\b|this request\b",
    re.I,
)
_WITHDRAWN = re.compile(
    r"model_not_found|does not exist|not[_ ]found|decommission|deprecat|no longer (available|supported)|retired", re.I
)
_TOO_LONG = re.compile(r"context[_ ]length|maximum context|too (long|many tokens)|prompt is too|exceeds? the", re.I)
_FILTERED = re.compile(r"content[_ ]?(filter|policy|management)|responsible ?ai|safety system", re.I)
_PARAMETERS = (
    "temperature|top_p|top_k|topP|topK|min_p|seed|stop|stop_sequences|logprobs|top_logprobs|max_tokens"
    "|max_completion_tokens|tools|tool_choice|reasoning_effort|reasoning|thinking|presence_penalty|frequency_penalty"
    "|repetition_penalty|logit_bias|response_format|service_tier|provider|return_token_ids|echo|n"
)
_PARAMETER = re.compile(
    r"(?:unsupported|unknown|unrecognized|unexpected|extra|invalid|not permitted)\b.{0,60}?\b(?P<after>NAMES)\b"
    r"|\b(?P<before>NAMES)\b.{0,80}?"
    r"\b(?:not (?:supported|allowed|permitted|available)|unsupported|deprecated|cannot be|does not support)".replace(
        "NAMES", _PARAMETERS
    ),
    re.I,
)
_MAY_NAME = frozenset({FaultKind.BAD_REQUEST, FaultKind.WITHDRAWN, FaultKind.TOO_LONG})
_CONTENT = ("messages", "prompt", "input", "contents", "model")


def terms_refused(text: str, *, declared: bool = False) -> bool:
    """A short text in which a teacher declines because its answers would train a competing model.

    Args:
        text: what it says.
        declared: the endpoint calls it a refusal; else it must begin like one.
    """
    if len(text) > 600 or not _TERMS.search(text) or not _DECLINES.search(text):
        return False
    return declared or bool(_OPENS.match(text.strip()))


def of_reply(status: int, headers: Mapping[str, str], raw: bytes, wall: float) -> Fault | None:
    """The fault that an HTTP answer is, or None: it is a success.

    A success with an ``error`` in its body, as OpenRouter sends it, is a fault of the status that the error names.
    """
    if status == 200 and raw[:1] == b"{" and b'"error"' not in raw:
        return None  # the usual case, without parsing
    plain = parse(raw)
    error = plain.get("error") if isinstance(plain, dict) else None
    if 200 <= status < 300:
        if not error:
            return None
        code = error.get("code") if isinstance(error, dict) else None
        status = int(code) if isinstance(code, int | str) and str(code).isdigit() and int(code) >= 400 else 500
    message, code, parameter = _told(plain, error, raw)
    should = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
    kind = _kind(status, message, code)
    if status in (400, 422) and kind in _MAY_NAME and (named := _parameter(parameter, code, message)):
        kind, parameter = FaultKind.PARAMETER, named
    return Fault(
        kind,
        f"HTTP {status}: {one_line(message) or 'no message'}",
        # A gateway that gave up does not know whether the model behind it went on.
        maybe_served=status in (408, 502, 504) or 520 <= status <= 527,
        wait=retry_after(headers, plain, wall),
        retry=should,
        parameter=parameter if kind is FaultKind.PARAMETER else None,
    )


def _told(plain: Any, error: Any, raw: bytes) -> tuple[str, str, str | None]:
    """The message, codes and parameter of an error, whoever wrote it."""
    if isinstance(error, dict):
        codes = " ".join(str(error.get(name) or "") for name in ("code", "type", "status"))
        inner = error.get("metadata")
        more = f" {inner.get('raw') or ''}" if isinstance(inner, dict) else ""
        parameter = error.get("param")
        return f"{error.get('message') or ''}{more}", codes, parameter if isinstance(parameter, str) else None
    if isinstance(plain, dict):
        said = error or plain.get("message") or plain.get("detail")
        if isinstance(said, str):
            return said, str(plain.get("code") or plain.get("type") or ""), None
        if isinstance(said, list):
            return json.dumps(said), "", None
    return raw[:2000].decode("utf-8", errors="replace"), "", None


def _kind(status: int, message: str, code: str) -> FaultKind:
    said = f"{code} {message}"
    quota = _QUOTA.search(message) and "RESOURCE_EXHAUSTED" not in code
    if status == 402 or (400 <= status <= 429 and (quota or _BILLING.search(said))):
        return FaultKind.BILLING
    if 400 <= status < 500 and status != 429 and _TERMS.search(message):
        return FaultKind.TERMS
    if status in (401, 403, 407):
        return FaultKind.KEY
    if status in (404, 410) or 300 <= status < 400:
        return FaultKind.WITHDRAWN
    if status == 429:
        return FaultKind.LIMITED
    if status in (503, 529):
        return FaultKind.OVERLOADED
    if status >= 500 or status in (408, 409, 425):
        return FaultKind.SERVER
    if _FILTERED.search(said):
        return FaultKind.FILTERED
    if _TOO_LONG.search(said) or status == 413:
        return FaultKind.TOO_LONG
    if "api key" in message.lower() or "api_key_invalid" in said.lower():
        return FaultKind.KEY
    if _WITHDRAWN.search(said) and "model" in said.lower():
        return FaultKind.WITHDRAWN
    return FaultKind.BAD_REQUEST


def _parameter(named: str | None, code: str, message: str) -> str | None:
    """The field that a bad request is about, where it is about the field and not about what this row says."""
    if named and named.split(".")[0].split("[")[0] in _CONTENT:
        return None
    if named and ("unsupported" in code or "unknown" in code):
        return named
    match = _PARAMETER.search(message)
    return next(each for each in match.groups() if each) if match else None
