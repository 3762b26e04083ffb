"""One record of a call's tokens, whatever the provider calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.generation.request import Usage

_STANDARD = {"", "auto", "default", "standard", "on_demand"}


def usage_of(protocol: str, plain: Mapping[str, Any]) -> Usage | None:
    """The tokens of a call, by its answer.

    OpenAI and what is compatible with it (OpenRouter, vLLM, DeepSeek) count cached tokens inside the prompt's, and
    reasoning inside the output's; Anthropic counts cached ones beside the prompt's; Gemini counts thoughts beside the
    answer's. xAI counts reasoning beside the output's, which the total shows.

    Args:
        protocol: of the endpoint: ``chat``, ``completions``, ``anthropic`` or ``gemini``.
        plain: the whole answer.

    Returns:
        None: the answer does not say, or what it says cannot be.
    """
    try:
        if protocol == "anthropic":
            return _anthropic(_part(plain, "usage"))
        if protocol == "gemini":
            return _gemini(_part(plain, "usageMetadata"))
        return _openai(_part(plain, "usage"), plain.get("service_tier"))
    except ValueError:
        return None


def _openai(usage: Mapping[str, Any], tier: Any) -> Usage:
    prompt, completion = _number(usage, "prompt_tokens", "input_tokens"), _number(usage, "completion_tokens")
    if "completion_tokens" not in usage:  # vLLM leaves it out of what generates nothing
        completion = _number(usage, "output_tokens")
    if not prompt:
        raise ValueError("no prompt")
    details = _details(usage, "prompt_tokens_details", "input_tokens_details")
    reasoning = _number(_details(usage, "completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    if _number(usage, "total_tokens") == prompt + completion + reasoning:
        completion += reasoning
    return _checked(
        Usage(
            prompt,
            completion,
            cached=_number(details, "cached_tokens") or _number(usage, "prompt_cache_hit_tokens"),
            cache_write=_number(details, "cache_write_tokens", "cache_creation_tokens"),
            reasoning=reasoning,
            tier=_tier(tier or usage.get("service_tier")),
        )
    )


def _anthropic(usage: Mapping[str, Any]) -> Usage:
    cached, written = _number(usage, "cache_read_input_tokens"), _number(usage, "cache_creation_input_tokens")
    prompt = _number(usage, "input_tokens") + cached + written
    if not prompt:
        raise ValueError("no prompt")
    return _checked(
        Usage(
            prompt,
            _number(usage, "output_tokens"),
            cached=cached,
            cache_write=written,
            reasoning=_number(_details(usage, "output_tokens_details"), "thinking_tokens", "reasoning_tokens"),
            tier=_tier(usage.get("service_tier")),
        )
    )


def _gemini(usage: Mapping[str, Any]) -> Usage:
    prompt = _number(usage, "promptTokenCount") + _number(usage, "toolUsePromptTokenCount")
    if not prompt:
        raise ValueError("no prompt")
    thoughts, written = _number(usage, "thoughtsTokenCount"), _number(usage, "candidatesTokenCount")
    # Some versions count thoughts among the candidates' tokens; then the total is that of prompt and candidates.
    inside = thoughts > 0 and _number(usage, "totalTokenCount") == prompt + written
    return _checked(
        Usage(
            prompt,
            written if inside else written + thoughts,
            cached=_number(usage, "cachedContentTokenCount"),
            reasoning=thoughts,
            tier=_tier(usage.get("trafficType") if usage.get("trafficType") not in ("ON_DEMAND",) else None),
        )
    )


def _checked(usage: Usage) -> Usage:
    if usage.cached + usage.cache_write > usage.input or usage.reasoning > usage.output:
        raise ValueError("a part is larger than its whole")
    return usage


def _tier(value: Any) -> str | None:
    text = value.lower() if isinstance(value, str) else ""
    return None if text in _STANDARD else text


def _part(plain: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = plain.get(name)
    if not isinstance(part, Mapping):
        raise ValueError(f"no {name}")
    return part


def _details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((part for name in names if isinstance(part := usage.get(name), Mapping)), {})


def _number(usage: Mapping[str, Any], *names: str) -> int:
    """The first of some counts that is given; 0: none is."""
    for name in names:
        value = usage.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53 or value % 1:
            raise ValueError(f"{name} is {value!r}")
        return int(value)
    return 0
