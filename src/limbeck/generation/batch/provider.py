"""The batch endpoints of providers: how requests are handed over, and how results come back."""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import TeacherGoneError
from limbeck.generation.api.teacher import Asked
from limbeck.generation.api.transport.client import Reply, import_aiohttp
from limbeck.generation.api.transport.clock import Clock
from limbeck.generation.api.transport.faults import Fault, FaultKind, of_reply, one_line
from limbeck.generation.journal.batches import Sending

TRIES = 6
SECONDS = 600.0


class AmbiguousError(Exception):
    """It is not known whether a batch was made."""


@dataclass(frozen=True)
class State:
    """What a provider says of a batch.

    Attributes:
        over: nothing more will come of it.
        served: answers that it says were written; None: it does not say.
        total: requests that it says it has.
        files: what can be read, by kind.
        said: its own word for the state.
    """

    over: bool
    served: int | None
    total: int | None
    files: Mapping[str, str]
    said: str


@dataclass(frozen=True)
class Result:
    """A line of results.

    Attributes:
        id: which request; "" where the line names none.
        answer: the answer, as an endpoint that is called would have given it; None: there is none.
        status: the HTTP status of the one call, where it has one.
        problem: why there is no answer.
        wrong: the request itself is at fault: it is not sent again.
    """

    id: str
    answer: Mapping[str, Any] | None = None
    status: int = 200
    problem: str = ""
    wrong: bool = False
    raw: bytes = b""


@dataclass
class Http:
    """Calls of one endpoint. What may be repeated is, on rate limits, failures of the server and of the connection."""

    asked: Asked
    clock: Clock
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = dict(self.asked.headers)

    async def call(self, method: str, url: str, *, repeat: bool = True, **more: Any) -> Reply:
        """The reply to a call that succeeded.

        Raises:
            TeacherGoneError: the provider refuses it, or does not answer.
            AmbiguousError: it may have been done (only where ``repeat`` is off).
        """
        fault = Fault(FaultKind.UNREACHABLE, "not asked")
        for number in range(TRIES):
            found = await self._once(method, url, more)
            if isinstance(found, Reply):
                refused = of_reply(found.status, found.headers, found.raw, self.clock.wall())
                if refused is None:
                    return found
                found = refused
            fault = found
            if fault.maybe_served and not repeat:
                raise AmbiguousError(self.asked.redact(fault.message))
            if not fault.passing:
                break
            await self.clock.sleep(fault.wait if fault.wait is not None else min(2.0**number, 30.0))
        raise TeacherGoneError(
            f"{self.asked.name} does not take the batch: {self.asked.redact(fault.message)}",
            fix="What was answered is kept; run again when it does",
        )

    async def _once(self, method: str, url: str, more: dict[str, Any]) -> Reply | Fault:
        aiohttp = import_aiohttp()
        more = {name: value() if callable(value) else value for name, value in more.items()}
        try:
            async with (
                aiohttp.ClientSession(headers={"User-Agent": "limbeck"}) as session,
                session.request(
                    method,
                    url,
                    headers=self.headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=SECONDS, sock_connect=30),
                    **more,
                ) as response,
            ):
                return Reply(response.status, response.headers, await response.read())
        except aiohttp.ClientConnectorError as error:
            return Fault(FaultKind.UNREACHABLE, one_line(str(error)))
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError) as error:
            return Fault(FaultKind.CUT, one_line(str(error) or type(error).__name__), maybe_served=True)


class Provider(ABC):
    """One provider's batches.

    Attributes:
        most_rows, most_bytes: limits of a batch.
    """

    most_rows: int
    most_bytes: int

    def __init__(self, asked: Asked, clock: Clock) -> None:
        self.asked, self.http = asked, Http(asked, clock)
        self.project = project_of(asked)

    @abstractmethod
    async def submit(self, sendings: Sequence[Sending], tag: str) -> str:
        """Hand requests over.

        Returns:
            The provider's name of the batch.

        Raises:
            AmbiguousError: there may be such a batch.
            TeacherGoneError: there is none.
        """

    async def find(self, tag: str) -> str | None:
        """The name of a batch by our own tag; None: there is none, or the provider keeps no tags."""
        return None

    @abstractmethod
    async def state(self, name: str) -> State:
        """How far a batch is."""

    @abstractmethod
    async def read(self, name: str, file: str) -> bytes:
        """The bytes of a file of results."""

    @abstractmethod
    def result(self, plain: Mapping[str, Any], raw: bytes) -> Result:
        """What a line of results says."""

    def results(self, content: bytes) -> Iterator[Result]:
        """The lines of a file; those that are no JSON objects are passed over."""
        for line in content.split(b"\n"):
            try:
                plain = json.loads(line)
            except ValueError:
                continue
            if isinstance(plain, dict):
                yield self.result(plain, line)


class OpenAi(Provider):
    """``/files`` and ``/batches``."""

    most_rows = 50_000
    most_bytes = 100 << 20

    async def submit(self, sendings: Sequence[Sending], tag: str) -> str:
        aiohttp = import_aiohttp()
        path = "/v1/chat/completions" if self.asked.endpoint.protocol == "chat" else "/v1/completions"
        lines = b"".join(
            b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (each.key.encode(), path.encode(), each.body)
            for each in sendings
        )

        def form() -> Any:
            data = aiohttp.FormData()
            data.add_field("purpose", "batch")
            data.add_field("file", lines, filename=f"{tag}.jsonl", content_type="application/jsonl")
            return data

        api = self.asked.endpoint.api
        uploaded = _object(await self.http.call("POST", f"{api}/files", data=form))
        wanted = {
            "input_file_id": uploaded.get("id"),
            "endpoint": path,
            "completion_window": "24h",
            "metadata": {"limbeck": tag},
        }
        return _name(await self.http.call("POST", f"{api}/batches", repeat=False, json=wanted))

    async def find(self, tag: str) -> str | None:
        after = ""
        for _ in range(20):
            page = _object(await self.http.call("GET", f"{self.asked.endpoint.api}/batches?limit=100{after}"))
            batches = [each for each in page.get("data") or [] if isinstance(each, dict)]
            for each in batches:
                if (each.get("metadata") or {}).get("limbeck") == tag:
                    return str(each["id"])
            if not page.get("has_more") or not batches:
                return None
            after = f"&after={batches[-1].get('id')}"
        return None

    async def state(self, name: str) -> State:
        plain = _object(await self.http.call("GET", f"{self.asked.endpoint.api}/batches/{name}"))
        counts = plain.get("request_counts") or {}
        served, total = _count(counts, "completed"), _count(counts, "total")
        names = (("output", "output_file_id"), ("error", "error_file_id"))
        files = {kind: str(plain[field]) for kind, field in names if plain.get(field)}
        said = str(plain.get("status"))
        # Some say "finalizing" for hours after all is counted and the files are there.
        counted = bool(total) and served is not None and served + (_count(counts, "failed") or 0) >= (total or 0)
        over = said in ("completed", "failed", "expired", "cancelled") or (counted and bool(files))
        if over and served and "output" not in files:
            over = False  # answers that were written must be somewhere
        return State(over, served, total, files, said)

    async def read(self, name: str, file: str) -> bytes:
        return (await self.http.call("GET", f"{self.asked.endpoint.api}/files/{file}/content")).raw

    def result(self, plain: Mapping[str, Any], raw: bytes) -> Result:
        key = plain.get("custom_id") if isinstance(plain.get("custom_id"), str) else ""
        response = plain.get("response") if isinstance(plain.get("response"), dict) else {}
        assert isinstance(response, dict)
        body, status = response.get("body"), response.get("status_code")
        if status == 200 and isinstance(body, dict) and not body.get("error"):
            return Result(str(key), body, raw=raw)
        error = plain.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
        said = str(error.get("message") or error.get("code") if isinstance(error, dict) else error)
        code = status if isinstance(status, int) else 0
        wrong = 400 <= code < 500 and code not in (408, 409, 425, 429)
        return Result(str(key), None, code, one_line(said), wrong, raw)


class Anthropic(Provider):
    """``/v1/messages/batches``. It keeps no tags."""

    most_rows = 100_000
    most_bytes = 200 << 20

    @property
    def _url(self) -> str:
        return f"{self.asked.url}/batches"

    async def submit(self, sendings: Sequence[Sending], tag: str) -> str:
        parts = (b'{"custom_id":"%s","params":%s}' % (each.key.encode(), each.body) for each in sendings)
        body = b'{"requests":[' + b",".join(parts) + b"]}"
        headers = {"Content-Type": "application/json"}
        self.http.headers |= headers
        return _name(await self.http.call("POST", self._url, repeat=False, data=body))

    async def state(self, name: str) -> State:
        plain = _object(await self.http.call("GET", f"{self._url}/{name}"))
        counts = plain.get("request_counts") or {}
        numbers = [_count(counts, kind) or 0 for kind in ("processing", "succeeded", "errored", "canceled", "expired")]
        over = plain.get("processing_status") == "ended" or (sum(numbers) > 0 and not numbers[0])
        # The results are read from the endpoint itself: another host would get the key.
        files = {"output": "results"} if over else {}
        served = _count(counts, "succeeded")
        return State(over, served, sum(numbers) or None, files, str(plain.get("processing_status")))

    async def read(self, name: str, file: str) -> bytes:
        return (await self.http.call("GET", f"{self._url}/{name}/results")).raw

    def result(self, plain: Mapping[str, Any], raw: bytes) -> Result:
        key = plain.get("custom_id") if isinstance(plain.get("custom_id"), str) else ""
        result = plain.get("result") if isinstance(plain.get("result"), dict) else {}
        assert isinstance(result, dict)
        if result.get("type") == "succeeded" and isinstance(result.get("message"), dict):
            return Result(str(key), result["message"], raw=raw)
        error = result.get("error")
        while isinstance(error, dict) and isinstance(error.get("error"), dict):
            error = error["error"]
        error = error if isinstance(error, dict) else {}
        kind = str(error.get("type") or result.get("type") or "no result")
        said = one_line(f"{kind}: {error.get('message')}" if error.get("message") else kind)
        return Result(str(key), None, 0, said, kind == "invalid_request_error", raw)


class Gemini(Provider):
    """``/models/MODEL:batchGenerateContent`` with its requests inline, and ``/batches``."""

    most_rows = 50_000
    most_bytes = 19 << 20

    async def submit(self, sendings: Sequence[Sending], tag: str) -> str:
        parts = (b'{"request":%s,"metadata":{"key":"%s"}}' % (each.body, each.key.encode()) for each in sendings)
        body = b'{"batch":{"displayName":"%s","inputConfig":{"requests":{"requests":[' % tag.encode()
        body += b",".join(parts) + b"]}}}}"
        self.http.headers |= {"Content-Type": "application/json"}
        url = self.asked.url.removesuffix(":generateContent") + ":batchGenerateContent"
        return _name(await self.http.call("POST", url, repeat=False, data=body), "name")

    async def find(self, tag: str) -> str | None:
        after = ""
        for _ in range(20):
            page = _object(await self.http.call("GET", f"{self.asked.endpoint.api}/batches?pageSize=100{after}"))
            for each in page.get("operations") or []:
                if isinstance(each, dict) and (each.get("metadata") or {}).get("displayName") == tag:
                    return str(each["name"])
            if not page.get("nextPageToken"):
                return None
            after = f"&pageToken={page['nextPageToken']}"
        return None

    async def state(self, name: str) -> State:
        plain = _object(await self.http.call("GET", f"{self.asked.endpoint.api}/{name}"))
        metadata = plain.get("metadata") or {}
        counts = metadata.get("batchStats") or {}  # 64-bit numbers are strings in Google's JSON
        total, served = (_count(counts, kind) for kind in ("requestCount", "successfulRequestCount"))
        said = str(metadata.get("state"))
        over = bool(plain.get("done")) or said.removeprefix("BATCH_STATE_") in (
            "SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED",
        )  # fmt: skip
        files = {"output": name} if over and plain.get("response") else {}
        if over and served and not files:
            over = False  # answers that were written must be somewhere
        return State(over, served if served is not None or not over else 0, total, files, said)

    async def read(self, name: str, file: str) -> bytes:
        return (await self.http.call("GET", f"{self.asked.endpoint.api}/{file}")).raw

    def results(self, content: bytes) -> Iterator[Result]:
        try:
            found = json.loads(content)["response"]["inlinedResponses"]["inlinedResponses"]
        except (ValueError, KeyError, TypeError):
            return
        for each in found if isinstance(found, list) else ():
            if isinstance(each, dict):
                yield self.result(each, json.dumps(each).encode())

    def result(self, plain: Mapping[str, Any], raw: bytes) -> Result:
        metadata, answer = plain.get("metadata"), plain.get("response")
        key = str(metadata.get("key") or "") if isinstance(metadata, dict) else ""
        if isinstance(answer, dict):
            return Result(key, answer, raw=raw)
        error = plain.get("error") if isinstance(plain.get("error"), dict) else {}
        assert isinstance(error, dict)
        wrong = error.get("code") in (3, 400)  # INVALID_ARGUMENT
        return Result(key, None, 0, one_line(str(error.get("message") or "no result")), wrong, raw)


def provider_of(asked: Asked, clock: Clock) -> Provider:
    """The batch endpoint of a teacher."""
    if asked.endpoint.protocol == "anthropic":
        return Anthropic(asked, clock)
    if asked.endpoint.protocol == "gemini":
        return Gemini(asked, clock)
    return OpenAi(asked, clock)


def project_of(asked: Asked) -> str:
    """A fingerprint of the account: batches are seen by their own project only. A key is not found from it."""
    secret = "\n".join(f"{name}: {value}" for name, value in sorted(asked.headers.items()))
    salted = hashlib.scrypt(secret.encode(), salt=asked.endpoint.api.encode(), n=2**12, r=8, p=1, dklen=6)
    return salted.hex()


def _object(reply: Reply) -> Mapping[str, Any]:
    try:
        plain = json.loads(reply.raw)
    except ValueError:
        plain = None
    return plain if isinstance(plain, dict) else {}


def _name(reply: Reply, field: str = "id") -> str:
    name = _object(reply).get(field)
    if not isinstance(name, str) or not name:
        raise AmbiguousError("the answer names no batch")
    return name


def _count(counts: Any, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    value = int(value) if isinstance(value, str) and value.isdecimal() else value
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
