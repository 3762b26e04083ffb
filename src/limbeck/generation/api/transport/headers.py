"""How long a server asks to wait: ``Retry-After`` and rate limit headers, in all the forms that are in use."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_EPOCH = 1_000_000_000
"""Larger numbers of seconds are points in time."""


def number(text: str | None) -> float | None:
    """A finite number that is not negative, else None: servers write -1 for what they do not know."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def duration(text: str | None) -> float | None:
    """Seconds of ``1.5``, ``20s``, ``6m0s``, ``1h2m`` or ``120ms``."""
    text = (text or "").strip()
    if (plain := number(text)) is not None:
        return plain
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    hours, minutes, seconds, thousandths = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + thousandths / 1000


def _date(text: str | None) -> float | None:
    """Seconds since 1970 of an HTTP or ISO 8601 date."""
    if not text:
        return None
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        try:
            found = datetime.datetime.fromisoformat(text.strip())
        except ValueError:
            return None
    if found.tzinfo is None:
        found = found.replace(tzinfo=datetime.UTC)
    return found.timestamp()


def _until(text: str | None, wall: float) -> float | None:
    """Seconds until a date, a Unix time in seconds or milliseconds, or the end of a duration."""
    value = duration(text)
    if value is not None:
        if value > 1000 * _EPOCH:
            value /= 1000
        return max(0.0, value - wall) if value > _EPOCH else value
    date = _date(text)
    return None if date is None else max(0.0, date - wall)


def retry_after(headers: Mapping[str, str], plain: Any, wall: float) -> float | None:
    """Seconds to wait before the next try, where the server says.

    Args:
        headers: of the answer, case-insensitive.
        plain: its body, if it is JSON: Gemini writes a ``retryDelay`` there.
        wall: the time now, in seconds since 1970; the server's own ``Date`` is preferred.
    """
    wall = _date(headers.get("Date")) or wall
    milliseconds = number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = _until(headers.get("Retry-After"), wall)
    if asked is not None:
        return asked
    details = plain.get("error", {}).get("details") if _is_error(plain) else None
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and (delay := duration(str(detail.get("retryDelay", "")))) is not None:
            return delay
    return exhausted_for(headers, wall)


def exhausted_for(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds until a rate limit that has nothing left is filled again; None: none is known to be empty."""
    waits = []
    for remaining, reset in _LIMITS:
        if number(headers.get(remaining)) == 0 and (wait := _until(headers.get(reset), wall)) is not None:
            waits.append(wait)
    return max(waits, default=None)


def _is_error(plain: Any) -> bool:
    return isinstance(plain, dict) and isinstance(plain.get("error"), dict)


_LIMITS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
)
