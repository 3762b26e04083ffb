"""A small server with the batch endpoints of OpenAI, Anthropic and Gemini, and faults on demand.

It counts what it wrote an answer to (``billed``, by custom id), and which batches it made.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from aiohttp import web

from tests.servers.threaded import ThreadedServer


class BatchServer(ThreadedServer):
    """``faults`` are names, one a batch in turn (then none):

    ``expired``: a third is answered, the rest expires. ``no_output``: completed, counted, and no file. ``late_output``:
    the same, and the file comes at the third look. ``ids``: results out of order, twice, with ``""`` and foreign ids.
    ``torn``: the output ends in the middle of a line. ``errors``: a third fails on the server, one request is wrong.
    ``lost``: the batch is made, and the connection breaks. ``refused``: 400. ``billing``: insufficient_quota.
    ``empty``: it fails as a whole. ``status``: all is counted and there, and the status says it is still under way.
    """

    def __init__(self, *faults: str, key: str = "", text: str | None = None) -> None:
        self.faults = list(faults)
        self.key, self.text = key, text
        self.held = False
        """While it is true, batches are in progress."""
        self.called: list[dict[str, Any]] = []
        """Bodies of requests that were not part of a batch."""
        self.billed: Counter[str] = Counter()
        self.batches: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}

    def routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/files", self._upload)
        app.router.add_post("/v1/chat/completions", self._call)
        app.router.add_get("/v1/files/{name}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{name}", self._look)
        app.router.add_post("/v1beta/models/{model}", self._create_contents)
        app.router.add_get("/v1beta/batches", self._list_contents)
        app.router.add_get("/v1beta/batches/{name}", self._look_contents)
        app.router.add_post("/v1/messages/batches", self._create_messages)
        app.router.add_get("/v1/messages/batches/{name}", self._look_messages)
        app.router.add_get("/v1/messages/batches/{name}/results", self._results)

    async def _call(self, request: web.Request) -> web.Response:
        self.called.append(await request.json())
        return web.json_response(_chat(self.called[-1], self.text))

    async def _upload(self, request: web.Request) -> web.Response:
        fields = await request.post()
        assert fields["purpose"] == "batch"
        name = f"file-in-{len(self.files)}"
        content = fields["file"]
        assert isinstance(content, web.FileField)
        self.files[name] = content.file.read()
        return web.json_response({"id": name, "object": "file"})

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])

    async def _create(self, request: web.Request) -> web.StreamResponse:
        plain = await request.json()
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("refused", "billing"):
            error = {"message": "no", "code": "insufficient_quota" if fault == "billing" else "bad_file"}
            return web.json_response({"error": error}, status=429 if fault == "billing" else 400)
        asked = [json.loads(line) for line in self.files[plain["input_file_id"]].splitlines()]
        assert all(each["url"] == plain["endpoint"] == "/v1/chat/completions" for each in asked)
        batch = self._made(fault, plain["metadata"], [(each["custom_id"], each["body"]) for each in asked])
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response({"id": batch["id"], "status": "validating"})

    def _made(self, fault: str, metadata: Any, asked: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in asked}) == len(asked)
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {"id": name, "fault": fault, "metadata": metadata, "asked": asked, "looks": 0}
        return self.batches[name]

    async def _list(self, _: web.Request) -> web.Response:
        rows = [{"id": each["id"], "metadata": each["metadata"]} for each in self.batches.values()]
        return web.json_response({"data": rows, "has_more": False})

    async def _look(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["name"])
        if batch is None:
            return web.json_response({"error": {"message": "no such batch"}}, status=404)
        batch["looks"] += 1
        asked, fault = batch["asked"], batch["fault"]
        if batch["looks"] < 2 or self.held:
            counts = {"total": len(asked), "completed": 0, "failed": 0}
            return web.json_response({"id": batch["id"], "status": "in_progress", "request_counts": counts})
        if "state" not in batch:
            batch["state"] = self._work(batch, asked, fault)
        state = dict(batch["state"])
        if fault == "no_output" or (fault == "late_output" and batch["looks"] < 5):
            state["output_file_id"] = None
        return web.json_response(state)

    def _work(self, batch: dict[str, Any], asked: list[tuple[str, Any]], fault: str) -> dict[str, Any]:
        good, bad = asked, []
        if fault == "empty":
            return {"id": batch["id"], "status": "failed", "request_counts": {"total": 0, "completed": 0, "failed": 0}}
        if fault in ("expired", "errors"):
            good, bad = asked[: len(asked) // 3], asked[len(asked) // 3 :]
        lines = []
        for key, body in good:
            self.billed[key] += 1
            lines.append(
                {
                    "id": "r",
                    "custom_id": key,
                    "response": {"status_code": 200, "body": _chat(body, self.text)},
                    "error": None,
                }
            )
        if fault == "ids":
            lines = [*reversed(lines), *lines, {**lines[0], "custom_id": ""}, {**lines[0], "custom_id": "foreign"}]
            lines.append({"id": "r", "custom_id": asked[0][0], "response": None, "error": {"message": "twice"}})
        errors = []
        for number, (key, _) in enumerate(bad):
            if fault == "expired":
                error = {"code": "batch_expired", "message": "not in time"}
                errors.append({"custom_id": key, "response": None, "error": error})
            else:
                response = {"status_code": 400 if number == 0 else 500, "body": {"error": {"message": "broken"}}}
                errors.append({"custom_id": key, "response": response, "error": None})
        output = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if fault == "torn":
            output = output[: len(output) * 2 // 3]
        self.files[f"{batch['id']}-out"] = output
        self.files[f"{batch['id']}-err"] = b"".join(json.dumps(line).encode() + b"\n" for line in errors)
        return {
            "id": batch["id"],
            "status": {"expired": "expired", "status": "finalizing"}.get(fault, "completed"),
            "request_counts": {"total": len(asked), "completed": len(good), "failed": len(bad)},
            "output_file_id": f"{batch['id']}-out" if good else None,
            "error_file_id": f"{batch['id']}-err" if bad else None,
        }

    async def _create_contents(self, request: web.Request) -> web.StreamResponse:
        assert request.match_info["model"].endswith(":batchGenerateContent")
        plain = (await request.json())["batch"]
        fault = self.faults.pop(0) if self.faults else ""
        asked = plain["inputConfig"]["requests"]["requests"]
        batch = self._made(fault, plain["displayName"], [(each["metadata"]["key"], each["request"]) for each in asked])
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response(_operation(batch, "PENDING"))

    async def _list_contents(self, _: web.Request) -> web.Response:
        return web.json_response({"operations": [_operation(each, "RUNNING") for each in self.batches.values()]})

    async def _look_contents(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["name"]]
        batch["looks"] += 1
        if batch["looks"] < 2 or self.held:
            return web.json_response(_operation(batch, "RUNNING"))
        asked = batch["asked"]
        good = {"expired": asked[: len(asked) // 3], "errors": asked[1:]}.get(batch["fault"], asked)
        answers: list[dict[str, Any]] = []
        for key, body in asked:
            if (key, body) not in good:
                error = {"code": 3 if batch["fault"] == "errors" else 4, "message": "broken"}
                answers.append({"error": error, "metadata": {"key": key}})
                continue
            if "state" not in batch:
                self.billed[key] += 1
            text = f"answer to {body['contents'][-1]['parts'][0]['text']}" if self.text is None else self.text
            candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}
            usage = {"promptTokenCount": 20, "candidatesTokenCount": 5, "totalTokenCount": 25}
            answer = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}
            answers.append({"response": answer, "metadata": {"key": key}})
        batch["state"] = {}
        state = "EXPIRED" if batch["fault"] == "expired" else "SUCCEEDED"
        return web.json_response(_operation(batch, state, list(reversed(answers)), len(good)))

    async def _create_messages(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["anthropic-version"]
        plain = await request.json()
        fault = self.faults.pop(0) if self.faults else ""
        batch = self._made(fault, None, [(each["custom_id"], each["params"]) for each in plain["requests"]])
        if fault == "lost":
            for key, _ in batch["asked"]:
                self.billed[key] += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response({"id": batch["id"], "processing_status": "in_progress"})

    async def _look_messages(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["name"]]
        batch["looks"] += 1
        total, good = len(batch["asked"]), len(batch["asked"])
        if batch["fault"] == "expired":
            good = total // 3
        over = batch["looks"] > 1
        counts = {"processing": 0 if over else total, "succeeded": good * over, "errored": 0, "canceled": 0}
        counts["expired"] = (total - good) * over
        elsewhere = "http://127.0.0.1:9/steal"
        status = {"id": batch["id"], "processing_status": "ended" if over else "in_progress", "request_counts": counts}
        return web.json_response(status | {"results_url": elsewhere})

    async def _results(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["name"]]
        lines = []
        for number, (key, body) in enumerate(batch["asked"]):
            if batch["fault"] == "expired" and number >= len(batch["asked"]) // 3:
                lines.append({"custom_id": key, "result": {"type": "expired"}})
                continue
            self.billed[key] += 1
            content = [{"type": "text", "text": f"answer to {body['messages'][-1]['content']}"}]
            usage = {"input_tokens": 20, "output_tokens": 5}
            message = {"type": "message", "role": "assistant", "model": body["model"], "content": content}
            message |= {"stop_reason": "end_turn", "usage": usage}
            lines.append({"custom_id": key, "result": {"type": "succeeded", "message": message}})
        return web.Response(body=b"\n".join(json.dumps(line).encode() for line in reversed(lines)))


def _operation(
    batch: dict[str, Any], state: str, answers: list[dict[str, Any]] | None = None, good: int = 0
) -> dict[str, Any]:
    """A long-running operation of Google's, whose 64-bit numbers are strings."""
    stats = {"requestCount": str(len(batch["asked"])), "successfulRequestCount": str(good)}
    metadata = {"state": f"BATCH_STATE_{state}", "displayName": batch["metadata"], "batchStats": stats}
    plain: dict[str, Any] = {"name": f"batches/{batch['id']}", "metadata": metadata}
    if answers is not None:
        plain |= {"done": True, "response": {"inlinedResponses": {"inlinedResponses": answers}}}
    return plain


def _chat(body: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    said = f"answer to {body['messages'][-1]['content']}" if text is None else text
    message = {"role": "assistant", "content": said}
    return {
        "id": "c",
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
    }
