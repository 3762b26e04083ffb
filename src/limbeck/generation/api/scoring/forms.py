"""How servers are asked what they think of a text, and how they say it.

A position's entries are ``{token id: log-probability}``. Element ``i`` of an answer belongs to token ``i`` of the
prompt, given the tokens before it; nothing is said of token 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from limbeck.generation.api.protocols.base import MalformedError, mapping, merged
from limbeck.generation.api.protocols.chat import first_choice
from limbeck.recipe.served import Endpoint

Entries = dict[int, float]

_TOKEN = "token_id:"
_AS_IT_IS = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
"""Or else a server takes what the model's `generation_config.json` says, which may change what it says of its own."""


class ScoringForm(ABC):
    """One server's way. ``name``: for people, and in fingerprints."""

    name: ClassVar[str]

    @abstractmethod
    def url(self, endpoint: Endpoint) -> str:
        """Where requests are posted."""

    @abstractmethod
    def fields(self, endpoint: Endpoint, prompt: Sequence[int] | str, k: int, temperature: float) -> dict[str, Any]:
        """The body as plain data, without ``extra``."""

    @abstractmethod
    def positions(self, plain: Any) -> list[Entries | None]:
        """What an answer says of each token of the prompt: the ``k`` most probable tokens and the prompt's own.

        Raises:
            MalformedError: it says nothing of the prompt, or in another form.
        """

    @abstractmethod
    def written(self, plain: Any) -> Entries | None:
        """What the server thought of the token that it wrote behind the prompt; None: it does not say."""

    @abstractmethod
    def usage(self, plain: Any) -> Mapping[str, Any]:
        """The tokens that were counted, as an answer of OpenAI has them: ``{"usage": {...}}``."""

    def body(self, endpoint: Endpoint, prompt: Sequence[int] | str, k: int, temperature: float) -> dict[str, Any]:
        """The body of a request.

        Args:
            endpoint: who is asked; its ``extra`` is part of the body.
            prompt: token ids, or a text that the server turns into tokens, without special ones.
            k: so many of the most probable tokens.
            temperature: at which probabilities are taken, where the server heeds it.
        """
        return merged(self.fields(endpoint, prompt, k, temperature), endpoint.extra)


class VLLM(ScoringForm):
    """``prompt_logprobs`` of vLLM's ``POST /v1/completions``, which others have taken over.

    ``choices[0].prompt_logprobs`` is a list, None first, of ``{"id": {"logprob": ..., "rank": ..., ...}}``. The
    prompt's own token is among them whatever its rank. A probability of 0 is written as -9999.
    """

    name: ClassVar[str] = "prompt_logprobs"

    def url(self, endpoint: Endpoint) -> str:
        return f"{endpoint.api}/completions"

    def fields(self, endpoint: Endpoint, prompt: Sequence[int] | str, k: int, temperature: float) -> dict[str, Any]:
        return {
            "model": endpoint.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": 1,
            "temperature": temperature,
            **_AS_IT_IS,
            "prompt_logprobs": k,
            "logprobs": k,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }

    def positions(self, plain: Any) -> list[Entries | None]:
        listed = first_choice(mapping(plain, "the answer")).get("prompt_logprobs")
        if not isinstance(listed, list):
            raise MalformedError("no prompt_logprobs")
        try:
            return [None if at is None else {int(token): _logprob(said) for token, said in at.items()} for at in listed]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MalformedError(f"prompt_logprobs of another form: {error}") from error

    def written(self, plain: Any) -> Entries | None:
        found = first_choice(plain).get("logprobs")
        tops = found.get("top_logprobs") if isinstance(found, dict) else None
        if not isinstance(tops, list) or not tops or not isinstance(tops[0], dict):
            return None
        own = {token.removeprefix(_TOKEN): value for token, value in tops[0].items() if token.startswith(_TOKEN)}
        return {int(token): float(value) for token, value in own.items() if token.isdecimal()} or None

    def usage(self, plain: Any) -> Mapping[str, Any]:
        return mapping(plain, "the answer")


class SGLang(ScoringForm):
    """``return_logprob`` of SGLang's own ``POST /generate``.

    ``meta_info.input_token_logprobs`` has ``[logprob, id, text]`` of the prompt's own tokens, the first without a
    logprob, and ``meta_info.input_top_logprobs`` a list of such, None first, for the most probable ones.
    """

    name: ClassVar[str] = "return_logprob"

    def url(self, endpoint: Endpoint) -> str:
        return f"{endpoint.api.removesuffix('/v1')}/generate"

    def fields(self, endpoint: Endpoint, prompt: Sequence[int] | str, k: int, temperature: float) -> dict[str, Any]:
        return {
            **({"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}),
            "sampling_params": {"max_new_tokens": 1, "temperature": temperature, **_AS_IT_IS},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
        }

    def positions(self, plain: Any) -> list[Entries | None]:
        told = mapping(mapping(plain, "the answer").get("meta_info"), "meta_info")
        own, tops = told.get("input_token_logprobs"), told.get("input_top_logprobs")
        if not isinstance(own, list) or not isinstance(tops, list):
            raise MalformedError("no log-probabilities of the input")
        if len(own) != len(tops):
            raise MalformedError(f"{len(own)} tokens of the input, and the most probable ones of {len(tops)}")
        try:
            return [
                None if not top or said[0] is None else {**_triples(top), int(said[1]): float(said[0])}
                for said, top in zip(own, tops, strict=True)
            ]
        except (IndexError, TypeError, ValueError) as error:
            raise MalformedError(f"log-probabilities of another form: {error}") from error

    def written(self, plain: Any) -> Entries | None:
        tops = mapping(plain.get("meta_info"), "meta_info").get("output_top_logprobs")
        try:
            return (_triples(tops[0]) or None) if isinstance(tops, list) else None
        except (IndexError, TypeError, ValueError):
            return None

    def usage(self, plain: Any) -> Mapping[str, Any]:
        return {"usage": plain["meta_info"]}


FORMS: tuple[ScoringForm, ...] = (VLLM(), SGLang())


def form_of(name: str) -> ScoringForm:
    """The form of a name."""
    return next(form for form in FORMS if form.name == name)


def _logprob(said: Any) -> float:
    return float(said["logprob"] if isinstance(said, Mapping) else said)


def _triples(listed: Sequence[Any]) -> Entries:
    return {int(each[1]): float(each[0]) for each in listed if each[0] is not None}
