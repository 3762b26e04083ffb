"""What a server really reveals of a text that is given to it. Each claim is tried before anything is bought."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import RecipeError
from limbeck.generation.api.protocols import MalformedError, encode, wire_format
from limbeck.generation.api.protocols.base import objects
from limbeck.generation.api.scoring.forms import FORMS, Entries, ScoringForm
from limbeck.generation.api.scoring.scores import LOWEST, ROUNDING, Scores, read_scores
from limbeck.generation.api.teacher import api_key
from limbeck.generation.api.transport.asking import as_error, ask_json
from limbeck.generation.api.transport.client import Client
from limbeck.generation.api.transport.faults import Fault, FaultKind, one_line
from limbeck.models.tokenizer import vocabulary_size
from limbeck.recipe.served import Endpoint

TEXT = (
    "In the year 1859 a farmer counted 27 sheep, sold nine of them (at 3.50 each), and wrote to his sister: "
    "\u201cThe river is high, but the bridge stands.\u201d She answered in June.\n\n"
    "def total(prices):\n    return sum(prices)\n"
)
"""Words, numbers, marks, code, and characters of several bytes: tokenizers differ on it."""
FEWER = (20, 5, 1)
"""Limits in use, tried where a server refuses as many entries as are asked for."""
_MAY_LACK = {FaultKind.WITHDRAWN, FaultKind.PARAMETER, FaultKind.BAD_REQUEST, FaultKind.TOO_LONG, FaultKind.SERVER}
"""Faults of a server that does not know what it is asked."""
APART = 0.1
"""Nats. Two answers of one model differ by less, in half precision and in batches of other sizes."""


@dataclass(frozen=True)
class Reveals:
    """What one server says of a text.

    Attributes:
        form: the name of its :class:`~limbeck.generation.api.scoring.forms.ScoringForm`.
        entries: of the most probable tokens at a position, as many as were asked for.
        tempered: whether its probabilities follow the temperature of the request.
        proven: whether what it says of a token was compared with that from which it writes the same token.
        window: tokens that it reads at most, one that it writes included; None: it does not say.
        own_P: log-probabilities of the probe's own text, to know the model again.
        tokens: what the probe sent.
    """

    api: str
    model: str
    form: str
    entries: int
    tempered: bool
    proven: bool
    window: int | None
    own_P: tuple[float, ...]
    tokens: int

    def line(self) -> str:
        """For people."""
        parts = [
            f"{self.entries} log-probabilities a token of a given text (`{self.form}`)",
            "its token ids are ours",
            "at the temperature of the request" if self.tempered else "of the model itself, whatever the temperature",
            "the same as those from which it writes" if self.proven else "not compared with what it writes",
            "reads any length" if self.window is None else f"reads {self.window:,} tokens",
        ]
        return f"{self.model} at {self.api}: {', '.join(parts)}"

    def is_another(self, own_P: Sequence[float]) -> bool:
        """Whether the model that gave ``own_P`` for the same text is another one."""
        if len(own_P) != len(self.own_P):
            return True
        return float(np.abs(np.asarray(own_P) - np.asarray(self.own_P)).mean()) > APART


def probe_scoring(endpoint: Endpoint, tokenizer: Any, k: int, temperature: float = 1.0) -> Reveals:
    """Ask a server with some ten short requests whether signals can be taken from it.

    Args:
        endpoint: who is asked.
        tokenizer: the run's.
        k: how many of the most probable tokens are wanted at each position.
        temperature: at which probabilities are wanted.

    Raises:
        RecipeError: it reveals too little, or what it reveals cannot be used; or the key, the model or the address is
            wrong.
        BudgetError: the account has no credit.
        TeacherGoneError: the server cannot be reached, or does not serve.
    """
    return asyncio.run(_Probe(endpoint, tokenizer, k, temperature).run())


class _Probe:
    def __init__(self, endpoint: Endpoint, tokenizer: Any, k: int, temperature: float) -> None:
        self.endpoint, self.tokenizer, self.k, self.temperature = endpoint, tokenizer, k, temperature
        self.ids: list[int] = tokenizer.encode(TEXT, add_special_tokens=False)
        self.vocab_size = vocabulary_size(tokenizer)
        self._key = api_key(endpoint)
        self._headers = wire_format("completions").headers(self._key)
        self.tokens = 0

    async def run(self) -> Reveals:
        async with Client() as client:
            self.client = client
            form, positions = await self._form()
            scores = self._checked(positions)
            await self._same_tokens(form)
            tempered = await self._tempered(form, scores)
            if self.temperature != 1.0:
                scores = self._checked(await self._positions(form, self.ids, self.temperature))
            return Reveals(
                self.endpoint.api,
                self.endpoint.model,
                form.name,
                self.k,
                tempered,
                await self._proven(form, positions),
                await self._window(),
                tuple(round(float(value), 4) for value in np.maximum(scores.own_P, LOWEST)),
                self.tokens,
            )

    async def _ask(self, form: ScoringForm, prompt: Sequence[int] | str, k: int, temperature: float) -> Any | Fault:
        self.tokens += len(self.ids) if isinstance(prompt, str) else len(prompt)
        body = encode(form.body(self.endpoint, prompt, k, temperature))
        return await ask_json(self.client, form.url(self.endpoint), self._headers, body, self._key)

    async def _positions(
        self, form: ScoringForm, prompt: Sequence[int] | str, temperature: float
    ) -> list[Entries | None]:
        answer = await self._ask(form, prompt, self.k, temperature)
        if isinstance(answer, Fault):
            raise as_error(self.endpoint, answer)
        try:
            return form.positions(answer)
        except MalformedError as error:
            raise self._too_little(f"does not give log-probabilities of a text: {error}") from None

    async def _form(self) -> tuple[ScoringForm, list[Entries | None]]:
        """The first form that the server answers in, with its answer."""
        said: list[str] = []
        for form in FORMS:
            answer = await self._ask(form, self.ids, self.k, 1.0)
            if isinstance(answer, Fault):
                if answer.kind not in _MAY_LACK:
                    raise as_error(self.endpoint, answer)
                if most := await self._fewer(form):
                    raise RecipeError(
                        f"{self.k} log-probabilities a token are asked for, and {self._name} gives at most {most} "
                        f"({answer.message})",
                        key=".signals.k",
                        fix=f"Ask for {most}, or start the server with more (vLLM: `--max-logprobs {self.k}`)",
                    )
                said.append(f"{form.name}: {answer.message}")
                continue
            try:
                return form, form.positions(answer)
            except MalformedError as error:
                said.append(f"{form.name}: {error}")
        raise self._too_little(f"does not give log-probabilities of a text ({'; '.join(said)})")

    async def _fewer(self, form: ScoringForm) -> int:
        """How many entries a server gives that refuses as many as are asked for; 0: none."""
        for k in FEWER:
            if k < self.k:
                answer = await self._ask(form, self.ids, k, 1.0)
                if not isinstance(answer, Fault):
                    try:
                        return k if any(form.positions(answer)) else 0
                    except MalformedError:
                        return 0
        return 0

    def _checked(self, positions: list[Entries | None]) -> Scores:
        """The answer to the probe's text, if it can be one."""
        self._aligned(positions)
        try:
            scores = read_scores(positions, self.ids, self.k, self.vocab_size)
        except MalformedError as error:
            key = ".signals.k" if "entries" in str(error) else ".model"
            raise self._too_little(f"gives what cannot be used: {error}", key) from None
        # Tokens beyond the k-th are no more probable than it: what is left of 1 has to fit among them.
        lost = 1 - scores.mass_P > (self.vocab_size - scores.counts_P) * np.exp(_kth(scores, self.k)) + ROUNDING
        if lost.any():
            raise RecipeError(
                f"what {self._name} gives are no log-probabilities: at {int(lost.sum())} of {len(scores)} tokens they "
                "do not sum to 1, whatever the other tokens have",
                key=".model",
                fix="Start the server so that it gives them (vLLM: `--logprobs-mode raw_logprobs`)",
            )
        return scores

    def _aligned(self, positions: list[Entries | None]) -> None:
        """Whether entries stand at the tokens that they are about."""
        ids, n = self.ids, len(self.ids)
        if _missing(positions, ids) == 0 and len(positions) == n:
            return
        if len(positions) == n + 1 and _missing(positions[1:], ids) == 0:
            raise RecipeError(
                f"{self._name} puts a token of its own before a text (BOS), so that it does not see what is learned",
                key=".model",
                fix="Start the server without it",
            )
        for by in (1, -1):
            if _missing(positions[max(by, 0) :], ids[max(-by, 0) :]) == 0:
                raise self._too_little(f"gives log-probabilities that are shifted by {by:+} tokens")
        if len(positions) != n:
            raise self._too_little(f"speaks of {len(positions)} tokens, where {n} were sent")
        raise self._too_little(
            f"does not give the log-probability of the text's own token ({_missing(positions, ids)} of {n - 1} lack it)"
        )

    async def _same_tokens(self, form: ScoringForm) -> None:
        """Whether the server turns a text into our ids: ids that are sent come back whatever they mean to it."""
        positions = await self._positions(form, TEXT, 1.0)
        for before in (0, 1):  # a text may get a BOS token where ids get none
            if len(positions) == len(self.ids) + before and _missing(positions[before:], self.ids) == 0:
                return
        raise RecipeError(
            f"{self._name} has another tokenizer: it makes {len(positions)} tokens of a text that has "
            f"{len(self.ids)} here" + ("" if len(positions) != len(self.ids) else ", and they are others"),
            key=".model",
            fix="Name the teacher's own tokenizer in `tokenizer.path`; students with others learn its text (`hard`)",
        )

    async def _tempered(self, form: ScoringForm, scores: Scores) -> bool:
        """Whether probabilities follow the request's temperature."""
        warm = read_scores(await self._positions(form, self.ids, 2.0), self.ids, self.k, self.vocab_size)
        finite = np.isfinite(scores.own_P) & np.isfinite(warm.own_P)
        tempered = bool(np.abs(scores.own_P - warm.own_P)[finite].mean() > APART / 2) if finite.any() else False
        if self.temperature != 1.0 and not tempered:
            raise RecipeError(
                f"signals at temperature {self.temperature:g} are asked for, and {self._name} gives those of "
                "temperature 1 only",
                key=".temperature",
                fix="Write `temperature: 1`",
            )
        return tempered

    async def _proven(self, form: ScoringForm, positions: list[Entries | None]) -> bool:
        """Compare what is said of a token with that from which the server writes it. False: it does not say.

        Raises:
            RecipeError: they are not the same.
        """
        compared = 0
        for n in (len(self.ids) // 2, len(self.ids) - 1):
            answer = await self._ask(form, self.ids[:n], self.k, 1.0)
            if isinstance(answer, Fault):
                raise as_error(self.endpoint, answer)
            written, said = form.written(answer), positions[n]
            if written is None or said is None:
                continue
            compared += 1
            both = [abs(max(written[each], LOWEST) - max(said[each], LOWEST)) for each in set(written) & set(said)]
            if len(both) < (min(len(written), self.k) + 1) // 2 or float(np.median(both)) > APART:
                raise self._too_little(
                    f"does not write from what it says of a text (token {n}): it is shifted, or probabilities are "
                    "changed before it writes"
                )
        return compared > 0

    async def _window(self) -> int | None:
        listed = await ask_json(self.client, f"{self.endpoint.api}/models", self._headers, None, self._key)
        models = objects(listed.get("data")) if isinstance(listed, dict) else []
        own = [model for model in models if model.get("id") == self.endpoint.model] or models[:1]
        window = own[0].get("max_model_len") if own else None
        return int(window) if isinstance(window, int) and window > 1 else None

    @property
    def _name(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.api}"

    def _too_little(self, what: str, key: str = ".model") -> RecipeError:
        return RecipeError(
            one_line(f"{self._name} {what}", 600),
            key=key,
            fix="Signals need `prompt_logprobs` (vLLM) or `/generate` (SGLang); without them write `hard`",
        )


def _missing(positions: Sequence[Entries | None], ids: Sequence[int]) -> int:
    """How many of the ids, from the second, are not among the entries at their place."""
    pairs = list(zip(positions, ids, strict=False))[1:]
    return sum(entries is None or token not in entries for entries, token in pairs)


def _kth(scores: Scores, k: int) -> np.ndarray:
    """The log-probability of the least probable of a position's ``k`` most probable tokens."""
    ends = np.cumsum(scores.counts_P)
    last = ends - scores.counts_P + np.minimum(scores.counts_P, k) - 1
    return scores.logprobs[last].astype(np.float64)
