"""A server that says what a real model thinks of a text, as vLLM or as SGLang does, with faults on demand."""

from __future__ import annotations

from typing import Any

import torch
from aiohttp import web

from tests.servers.faulty import FaultyServer, Settings, chat

LEAST = -9999.0


class ScoringServer(FaultyServer):
    """``POST /v1/completions`` with ``prompt_logprobs``, or ``POST /generate``; the logits are those of ``model``.

    Args:
        model: a transformers model. ``tokenizer``: what the server turns texts into tokens with.
        speaks: ``vllm`` or ``sglang``.
        most: entries at a position that it gives at most; more are refused.
        window: tokens that it reads at most.
        tempered: its probabilities of a text follow the temperature.
        raw: it gives logits in place of their log-probabilities.
        wrong: what is wrong with every answer: a kind of :data:`WRONG`.
        settings: of :class:`FaultyServer`. Its faults may have the kinds of :data:`WRONG`, too.
    """

    WRONG = ("null", "few", "foreign", "later", "earlier", "bos", "own_left_out", "too_much", "nan", "writes_otherwise")

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        speaks: str = "vllm",
        most: int = 20,
        window: int = 512,
        **settings: Any,
    ) -> None:
        self.model, self.tokenizer, self.speaks, self.most, self.window = model, tokenizer, speaks, most, window
        self.tempered, self.raw = bool(settings.pop("tempered", False)), bool(settings.pop("raw", False))
        self.wrong = str(settings.pop("wrong", ""))
        super().__init__(**settings)
        self.scored = 0
        """Tokens of texts that were scored."""

    def routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self._models)
        if self.speaks == "sglang":
            app.router.add_post("/generate", self._handler(self._generate))
        app.router.add_post("/v1/completions", self._handler(self._complete))
        app.router.add_post("/v1/chat/completions", super()._handler(chat))

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "toy", "max_model_len": self.window}]})

    def _positions(
        self, prompt: list[int] | str, k: int, heat: float, wrong: str
    ) -> tuple[list[tuple[int, Any]], dict[int, float]]:
        """Each token of the prompt with the entries on it, best first and its own last; those on what comes after."""
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        self.scored += len(ids)
        read = [self.tokenizer.eos_token_id, *ids] if wrong == "bos" else ids
        with torch.no_grad():
            logits_TV = self.model(input_ids=torch.tensor([read])).logits[0].float()
        scores_TV = logits_TV if self.raw else (logits_TV / (heat if self.tempered else 1.0)).log_softmax(-1)
        size = scores_TV.shape[1]
        values, tokens = scores_TV.topk(max(k - (wrong == "few"), 1))
        listed: list[tuple[int, Any]] = [(read[0], None)]
        for i, token in enumerate(read[1:]):
            best = dict(zip(tokens[i].tolist(), values[i].tolist(), strict=True))
            if wrong != "own_left_out":
                best[token] = float(scores_TV[i, token])
            if wrong == "too_much":
                best = {each: value + 6.0 for each, value in best.items()}
            if wrong == "nan":
                best[token] = float("nan")
            if wrong == "foreign":
                token, best = (token + 7) % size, {(each + 7) % size: value for each, value in best.items()}
            listed.append((token, {each: max(value, LEAST) for each, value in best.items()}))
        if wrong == "later":
            listed = [(read[0], None), *listed[:-1]]
        if wrong == "earlier":
            listed = [*listed[1:], listed[-1]]
        last = -2 if wrong == "writes_otherwise" else -1
        return listed, dict(zip(tokens[last].tolist(), values[last].tolist(), strict=True))

    def _complete(self, settings: Settings, body: dict[str, Any], fault: str) -> dict[str, Any]:
        wrong, k = fault or self.wrong, body.get("prompt_logprobs")
        choice: dict[str, Any] = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}
        listed: list[tuple[int, Any]] = []
        if k is not None and self.speaks == "vllm" and wrong != "null":
            listed, after = self._positions(body["prompt"], k, body.get("temperature", 1.0), wrong)
            choice["prompt_logprobs"] = [
                at and {str(token): _said(self.tokenizer, token, value) for token, value in at.items()}
                for _, at in listed
            ]
            tops = {f"token_id:{token}": value for token, value in after.items()}
            choice["logprobs"] = {"tokens": [next(iter(tops))], "top_logprobs": [tops]}
        usage = {"prompt_tokens": len(listed) or 8, "completion_tokens": 1, "total_tokens": (len(listed) or 8) + 1}
        return {"model": body["model"], "choices": [choice], "usage": usage}

    def _generate(self, settings: Settings, body: dict[str, Any], fault: str) -> dict[str, Any]:
        wrong, heat = fault or self.wrong, body["sampling_params"].get("temperature", 1.0)
        prompt = body["input_ids"] if "input_ids" in body else body["text"]
        k: int = body["top_logprobs_num"]
        listed, after = self._positions(prompt, k, heat, wrong)
        told: dict[str, Any] = {
            "prompt_tokens": len(listed),
            "completion_tokens": 1,
            "finish_reason": {"type": "length"},
        }
        if wrong != "null":
            told["input_token_logprobs"] = [[at and at.get(token), token, None] for token, at in listed]
            told["input_top_logprobs"] = [at and [[v, t, None] for t, v in list(at.items())[:k]] for _, at in listed]
            told["output_top_logprobs"] = [[[value, token, None] for token, value in after.items()]]
        return {"text": "x", "meta_info": told}

    def _handler(self, answer: Any) -> Any:
        handle = super()._handler(answer)

        async def checked(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            asked = body.get("prompt_logprobs", body.get("top_logprobs_num")) or 0
            if asked > self.most:
                said = f"Requested prompt logprobs of {asked}, which is greater than max allowed: {self.most}"
                return web.json_response({"error": {"message": said, "code": 400}}, status=400)
            prompt = body.get("prompt", body.get("input_ids"))
            if isinstance(prompt, list) and len(prompt) + 1 > self.window:
                said = f"This model's maximum context length is {self.window} tokens"
                return web.json_response({"error": {"message": said, "code": 400}}, status=400)
            return await handle(request)  # type: ignore[no-any-return]

        return checked


def _said(tokenizer: Any, token: int, value: float) -> dict[str, Any]:
    return {"logprob": value, "rank": 1, "decoded_token": tokenizer.decode([token])}
