"""A small server that speaks the protocols of teachers, with faults on demand, and counts what it served.

In a test: ``with FaultyServer(faults=[Fault("429", share=0.05)]) as server: server.url``. As a process of its own:
``python -m tests.servers.faulty --port 0 '{"faults": [{"kind": "429", "share": 0.05}]}'`` prints its URL; ``GET
/counts`` tells what it served, ``POST /control`` changes its settings.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import hashlib
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from tests.servers.threaded import ThreadedServer

HTML = "<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>"


@dataclass
class Fault:
    """What goes wrong, for a share of the requests, chosen by their bodies; ``tries``: at most so often a body."""

    kind: str
    share: float = 1.0
    tries: int = 1_000_000
    retry_after: str = "none"
    seconds: float = 0.0


@dataclass
class Settings:
    """How the server answers, where nothing goes wrong."""

    faults: list[Fault] = field(default_factory=list)
    latency: float = 0.0
    slow_share: float = 0.0
    slow_seconds: float = 1.0
    usage: str = "true"
    """true, none, or lie: a thousand times as much."""
    reasoning: str = "none"
    """none, or where it is: reasoning, reasoning_content, tags, lone."""
    logprobs: int | None = None
    """Alternatives a token at most; None: null under a 200."""
    refuses: tuple[str, ...] = ()
    """Parameters that are refused."""
    most_temperature: float | None = None
    """One above it is refused as vLLM refuses it: without the parameter's name beside the message."""
    most_choices: int = 128
    """Of one request (``n``)."""
    refuses_over: int | None = None
    """``n`` above it is refused."""
    length_field: str | None = None
    """The only name that the longest answer may have."""
    text: str | None = None
    """What is answered; default: it depends on the prompt."""
    headers: dict[str, str] = field(default_factory=dict)


class FaultyServer(ThreadedServer):
    """The server. ``billed`` counts by body what a model wrote, whether it arrived or not; ``asked`` all requests."""

    def __init__(self, *, when: Callable[[], str | None] | None = None, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.when = when
        """Asked before each answer: a kind of fault, or None."""
        self.asked: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.keep = True
        self.in_flight = self.most_in_flight = 0

    def routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._handler(chat))
        app.router.add_post("/v1/completions", self._handler(_completions))
        app.router.add_post("/v1/messages", self._handler(_anthropic))
        app.router.add_post("/v1beta/models/{model}", self._handler(_gemini))
        app.router.add_get("/counts", self._counts)
        app.router.add_post("/control", self._control)

    async def _counts(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "asked": sum(self.asked.values()),
                "billed": sum(self.billed.values()),
                "bodies": len(self.billed),
                "repeats": sum(n - 1 for n in self.billed.values()),
                "most_in_flight": self.most_in_flight,
            }
        )

    async def _control(self, request: web.Request) -> web.Response:
        self.settings = settings_of(await request.json())
        return web.json_response(asdict(self.settings))

    def _handler(self, answer: Callable[[Settings, dict[str, Any], str], dict[str, Any]]) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            raw = await request.read()
            key = hashlib.sha256(raw).hexdigest()
            self.asked[key] += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return await self._answer(request, raw, key, answer)
            finally:
                self.in_flight -= 1

        return handle

    async def _answer(self, request: web.Request, raw: bytes, key: str, answer: Any) -> web.StreamResponse:
        body = json.loads(raw)
        settings = self.settings
        if self.keep:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
        if refused := _refused(settings, body):
            return refused
        fault = self._fault(key)
        if fault is not None:
            response = await self._failing(request, fault, key)
            if response is not None:
                return response
        slow = settings.slow_share and _uniform(f"{key}/slow") < settings.slow_share
        if wait := settings.slow_seconds if slow else settings.latency:
            await asyncio.sleep(wait)
        self.billed[key] += 1
        plain = answer(settings, body, fault.kind if fault else "")
        if fault is not None and fault.kind in ("bad_utf8", "surrogate", "nul", "huge"):
            return web.Response(body=_odd(plain, fault.kind), content_type="application/json")
        return web.Response(body=json.dumps(plain).encode(), content_type="application/json", headers=settings.headers)

    def _fault(self, key: str) -> Fault | None:
        if self.when is not None:
            kind = self.when()
            return Fault(kind) if kind else None
        tries = self.asked[key]
        for number, fault in enumerate(self.settings.faults):
            if tries <= fault.tries and _uniform(f"{key}/{tries}/{number}") < fault.share:
                return fault
        return None

    async def _failing(self, request: web.Request, fault: Fault, key: str) -> web.StreamResponse | None:
        kind = fault.kind
        if kind == "hang":
            self.billed[key] += 1
            await asyncio.sleep(fault.seconds or 3600)
        if kind == "reset":
            self.billed[key] += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if kind == "cut":
            self.billed[key] += 1
            response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"message": {"con')
            assert request.transport is not None
            request.transport.close()
            return response
        if kind == "malformed":
            self.billed[key] += 1
            return web.Response(text=HTML, content_type="text/html")
        if kind not in _ERRORS:
            return None
        status, said = _ERRORS[kind]
        headers = _retry_after(fault.retry_after)
        if kind == "no_retry":
            headers["x-should-retry"] = "false"
        if kind == "key":
            said = {"error": {"message": f"Incorrect API key: {request.headers.get('Authorization')}"}}
        if isinstance(said, str):
            return web.Response(status=status, text=said, content_type="text/html", headers=headers)
        return web.json_response(said, status=status, headers=headers)


_ERRORS: dict[str, tuple[int, Any]] = {
    "429": (429, {"error": {"message": "Rate limit reached for requests", "type": "requests", "code": "rate_limit"}}),
    "gemini_429": (
        429,
        {
            "error": {
                "code": 429,
                "message": "Resource has been exhausted",
                "status": "RESOURCE_EXHAUSTED",
                "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.02s"}],
            }
        },
    ),
    "500": (500, {"error": {"message": "The server had an error", "type": "server_error"}}),
    "502": (502, HTML),
    "503": (503, {"error": {"message": "The engine is overloaded"}}),
    "529": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "no_retry": (500, {"error": {"message": "This will not work"}}),
    "402": (402, {"error": {"message": "Insufficient credits", "code": 402}}),
    "insufficient_quota": (
        429,
        {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
    ),
    "key": (401, {}),
    "withdrawn": (404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}),
    "terms": (403, {"error": {"message": "Your use violates our terms: we do not serve competing models."}}),
    "too_long": (
        400,
        {"error": {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}},
    ),
    "bad_request": (400, {"error": {"message": "Invalid image in your message", "type": "invalid_request_error"}}),
    "content_filter": (400, {"error": {"message": "The prompt was filtered", "code": "content_filter"}}),
    "error_body": (200, {"error": {"message": "Provider returned error", "code": 503}, "user_id": "u"}),
    "error_body_402": (200, {"error": {"message": "Insufficient credits", "code": 402}}),
}


def _retry_after(form: str) -> dict[str, str]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "none": {},
        "seconds": {"Retry-After": "0"},
        "float": {"Retry-After": "0.02"},
        "milliseconds": {"retry-after-ms": "15"},
        "date": {"Retry-After": format_datetime(now, usegmt=True)},
        "unit": {"Retry-After": "20ms"},
        "ratelimit": {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "10ms"},
        "unknown": {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "-1", "Retry-After": "-1"},
        "long": {"Retry-After": "86400"},
    }[form]


def _refused(settings: Settings, body: dict[str, Any]) -> web.Response | None:
    sent = {**body, **body.get("generationConfig", {})}
    for name in settings.refuses:
        if name in sent:
            said = f"Unsupported parameter: '{name}' is not supported with this model."
            error = {"message": said, "param": name, "code": "unsupported_parameter", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
    if settings.most_temperature is not None and (value := sent.get("temperature") or 0) > settings.most_temperature:
        said = f"temperature must be in [0, {settings.most_temperature:g}], got {value}."
        error = {"message": said, "type": "BadRequestError", "param": None, "code": 400}
        return web.json_response({"error": error}, status=400)
    if settings.refuses_over is not None and (body.get("n") or 1) > settings.refuses_over:
        error = {"message": f"Invalid value for 'n': must be at most {settings.refuses_over}.", "param": "n"}
        return web.json_response({"error": error | {"code": "invalid_value"}}, status=400)
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
    if settings.length_field and (name := other[settings.length_field]) in body:
        said = f"Unsupported parameter: '{name}' is not supported. Use '{settings.length_field}' instead."
        return web.json_response(
            {"error": {"message": said, "param": name, "code": "unsupported_parameter"}}, status=400
        )
    return None


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def _text(settings: Settings, prompt: str, fault: str) -> str:
    if fault == "terms_text":
        return "I'm sorry, but I can't help with training competing models."
    return settings.text if settings.text is not None else f"The answer to {prompt[:200]}"


def _odd(plain: dict[str, Any], kind: str) -> bytes:
    raw = json.dumps(plain).encode()
    new = {"bad_utf8": b"The \xff\xfe answer", "surrogate": b"The \\ud800 answer", "nul": b"The \\u0000 answer"}
    return raw.replace(b"The answer", new[kind] if kind != "huge" else b"The answer " + b"x" * 5_000_000, 1)


def _tokens(settings: Settings, prompt: str, text: str) -> tuple[int, int]:
    factor = 1000 if settings.usage == "lie" else 1
    return factor * (len(prompt.split()) + 8), factor * max(1, len(text.split()))


def chat(settings: Settings, body: dict[str, Any], fault: str) -> dict[str, Any]:
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else json.dumps(content)
    text = _text(settings, prompt, fault)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    reason = {"length": "length", "filtered": "content_filter", "tool_call": "tool_calls"}.get(fault, "stop")
    if fault == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    if fault == "tool_call":
        call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
        message |= {"content": None, "tool_calls": [call]}
    thought = "First I think."
    if settings.reasoning in ("reasoning", "reasoning_content"):
        message[settings.reasoning] = thought
    elif settings.reasoning == "tags":
        message["content"] = f"<think>\n{thought}\n</think>\n\n{text}"
    elif settings.reasoning == "lone":
        message["content"] = f"{thought}\n</think>\n\n{text}"
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    if body.get("logprobs") and settings.logprobs:
        n = min(settings.logprobs, body.get("top_logprobs", 0))
        words = [f" {word}" for word in text.split()]
        choice["logprobs"] = {
            "content": [
                {
                    "token": word,
                    "logprob": -0.5,
                    "bytes": list(word.encode()),
                    "top_logprobs": [{"token": f"{word}{i}", "logprob": -0.5 - i} for i in range(n)],
                }
                for word in words
            ]
        }
    several = min(body.get("n") or 1, settings.most_choices)
    choices = [{**choice, "index": i} for i in range(several)]
    if settings.text is None and isinstance(message["content"], str):  # samples differ
        for each in choices[1:]:
            each["message"] = {**message, "content": f"{message['content']}, sample {each['index']}"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": choices,
        **_usage(settings, prompt, " ".join(each["message"]["content"] or "" for each in choices)),
    }


def _usage(settings: Settings, prompt: str, text: str) -> dict[str, Any]:
    if settings.usage == "none":
        return {}
    given, written = _tokens(settings, prompt, text)
    return {"usage": {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}}


def _completions(settings: Settings, body: dict[str, Any], fault: str) -> dict[str, Any]:
    text = _text(settings, body["prompt"], fault)
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": fault or "stop"}
    if body.get("logprobs") and settings.logprobs:
        words = text.split()
        n = min(settings.logprobs, body["logprobs"])
        choice["logprobs"] = {
            "tokens": words,
            "token_logprobs": [-0.5] * len(words),
            "top_logprobs": [{f"{word}{i}": -0.5 - i for i in range(n)} for word in words],
        }
    return {"model": body["model"], "choices": [choice], **_usage(settings, body["prompt"], text)}


def _anthropic(settings: Settings, body: dict[str, Any], fault: str) -> dict[str, Any]:
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else json.dumps(content)
    text = _text(settings, prompt, fault)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if settings.reasoning != "none":
        blocks.insert(0, {"type": "thinking", "thinking": "First I think.", "signature": "c2lnbmF0dXJl"})
    reason = {"length": "max_tokens", "refusal": "refusal", "tool_call": "tool_use"}.get(fault, "end_turn")
    if fault == "tool_call":
        blocks.append({"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}})
    given, written = _tokens(settings, prompt, text)
    return {
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": blocks,
        "stop_reason": reason,
        "usage": {"input_tokens": given, "output_tokens": written},
    }


def _gemini(settings: Settings, body: dict[str, Any], fault: str) -> dict[str, Any]:
    prompt = body["contents"][-1]["parts"][0].get("text", "")
    text = _text(settings, prompt, fault)
    given, written = _tokens(settings, prompt, text)
    usage = {"promptTokenCount": given, "candidatesTokenCount": written, "totalTokenCount": given + written}
    if fault == "blocked":
        return {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": "m"}
    parts: list[dict[str, Any]] = [{"text": text}]
    if settings.reasoning != "none":
        parts = [{"text": "First I think.", "thought": True}, {"text": text, "thoughtSignature": "c2ln"}]
    if fault == "tool_call":
        parts.append({"functionCall": {"name": "look", "args": {"at": 1}}})
    reason = {"length": "MAX_TOKENS", "filtered": "SAFETY"}.get(fault, "STOP")
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": reason}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}


def settings_of(plain: dict[str, Any]) -> Settings:
    """Settings from JSON."""
    known = {each.name for each in fields(Settings)}
    assert set(plain) <= known, f"unknown: {set(plain) - known}"
    faults = [Fault(**each) for each in plain.get("faults", ())]
    return Settings(**{**plain, "faults": faults, "refuses": tuple(plain.get("refuses", ()))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="?", default="{}")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    server = FaultyServer()
    server.settings, server.keep = settings_of(json.loads(arguments.settings)), False

    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(server.serve(arguments.port, lambda: print(server.url, flush=True)))


def _end_with_parent() -> None:
    """A server that was started with a pipe as its input ends when the pipe is closed."""
    if not sys.stdin.isatty() and sys.stdin.read() == "":
        os._exit(0)


if __name__ == "__main__":
    main()
