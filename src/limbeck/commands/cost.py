"""``limbeck generate cost``: what the answers of a recipe cost, before anything is spent. No server is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from limbeck.data.chat.encode import encode_prompt
from limbeck.data.corpus import holdout_count
from limbeck.data.documents.sources import documents
from limbeck.data.questions import questions
from limbeck.errors import RecipeError, under
from limbeck.generation.api.protocols import encode, wire_format
from limbeck.generation.journal.budget import input_bound
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.prices import bound, cost, prices_of
from limbeck.generation.local import as_document
from limbeck.generation.prompts import Prompt, prompts_among, question_of, requests_for
from limbeck.generation.request import Request, Usage
from limbeck.generation.select.data_set.card import usd
from limbeck.generation.select.prompts import ToAsk, prompts_to_ask
from limbeck.generation.text import SHORTEST_ANSWER
from limbeck.models.folders.saved import quiet
from limbeck.pipeline.build import is_sampled, run_tokenizer
from limbeck.pipeline.shared.asking import journal_of
from limbeck.recipe import Data, Generation, Recipe, ServedTeacher, Soft, fingerprint
from limbeck.report.markup import one_line
from limbeck.workflow.lock import run_path

BYTES_A_TOKEN = 4
"""Of text in a body, where no tokenizer of the teacher is at hand: a usual figure for English."""


@dataclass
class Cost:
    """What the answers for one technique or several cost.

    Attributes:
        places: keys of the recipe that ask for them.
        prompts, requests: how many are asked.
        answered: requests that the journal has answers to: they cost nothing.
        nano_usd, tokens: the most that the others can cost: what is reserved for them.
        likely_nano_usd: what they cost if an answer is as long as the data's own.
        left_out: lines on prompts that are not asked.
    """

    places: list[str]
    prompts: int = 0
    requests: int = 0
    answered: int = 0
    nano_usd: int = 0
    tokens: int = 0
    likely_nano_usd: int = 0
    left_out: list[str] = field(default_factory=list)


def costs_of(recipe: Recipe) -> list[Cost]:
    """What a recipe's answers cost, for every set of answers that is asked for once. All its documents are read.

    Raises:
        RecipeError: its teacher has no price: its weights are in hand. Or the price is not known.
    """
    served = recipe.teacher
    if not isinstance(served, ServedTeacher):
        raise RecipeError("the teacher's weights are in hand: its answers cost nothing", key="teacher")
    quiet()
    tokenizer = run_tokenizer(recipe)
    path = journal_of(served.endpoint, run_path(recipe.run), served.journal or "")
    journal = Journal(path, read_only=True) if path.is_file() else None
    found: dict[str, Cost] = {}
    try:
        for index, technique in enumerate(recipe.techniques):
            generation: Generation | None = getattr(technique, "generation", None)
            if generation is None or not is_sampled(recipe, generation):
                continue
            place, same = f"techniques.{index}", fingerprint(generation.sampling())
            if same in found:
                found[same].places.append(place)
            else:
                found[same] = _cost(place, generation, recipe.data, served, (tokenizer, journal))
    finally:
        if journal is not None:
            journal.close()
    return list(found.values())


def _cost(
    place: str, generation: Generation, data: Data, served: ServedTeacher, at_hand: tuple[Any, Journal | None]
) -> Cost:
    tokenizer, journal = at_hand
    endpoint = served.endpoint
    with under("teacher"):
        prices, protocol = prices_of(endpoint), wire_format(endpoint.protocol)
    asked = _prompts(generation, data, tokenizer)
    found = Cost([place], left_out=list(asked.lines()))
    for prompt in asked.prompts:
        found.prompts += 1
        answer = len((prompt.reference or "").encode("utf-8", "replace")) // BYTES_A_TOKEN + 1
        for request in requests_for(prompt, generation, data.seq_len):
            found.requests += 1
            if journal is not None and journal.get(request.key(endpoint.identity)) is not None:
                found.answered += 1
                continue
            with under("teacher"):
                body = encode(protocol.body(endpoint, request))
            most_in, most_out = input_bound(body), request.max_new_tokens
            found.nano_usd += bound(most_in, most_out, prices)
            found.tokens += most_in + most_out
            likely = Usage(len(body) // BYTES_A_TOKEN + 1, min(answer, most_out))
            found.likely_nano_usd += cost(likely, prices)
    return found


def _costs_of_signals(recipe: Recipe, served: ServedTeacher) -> list[Cost]:
    """About what signals cost: every token that is learned is sent once, whatever reads it again."""
    places: dict[str, list[str]] = {}
    for index, technique in enumerate(recipe.techniques):
        if isinstance(technique, Soft) and technique.stored is not None:
            same = fingerprint(technique.stored, technique.temperature, technique.generation)
            places.setdefault(same, []).append(f"techniques.{index}")
    tokens = recipe.training.tokens * len(recipe.seeds)
    nano_usd = cost(Usage(tokens, 1), prices_of(served.endpoint))
    return [Cost(each, nano_usd=nano_usd, tokens=tokens, likely_nano_usd=nano_usd) for each in places.values()]


def _prompts(generation: Generation, data: Data, tokenizer: Any) -> ToAsk:
    """What a run would ask."""
    tokens, system = generation.prompt_tokens, generation.system
    found = {document.key: document for document in documents(data.corpus)}
    keys = np.array(sorted(int(key[:16], 16) for key in found), np.uint64)
    held_out = holdout_count(keys, data.heldout)
    heldout, own = (
        prompts_among(found.values(), part, tokenizer, prompt_tokens=tokens, system=system)
        for part in (keys[:held_out], keys[held_out:])
    )

    def fits(prompt: Prompt) -> bool:
        if tokenizer is None:
            return True
        document = as_document(Request(messages=prompt.messages, text=prompt.text, tools=prompt.tools))
        return len(encode_prompt(document, tokenizer, data.date)) <= data.seq_len - SHORTEST_ANSWER

    given = {document.key: question_of(document).after(system) for document in questions(data.prompts)}
    return prompts_to_ask(own, given.values(), heldout, generation, fits)


def show_costs(recipe: Recipe, costs: Iterable[Cost], console: Console) -> None:
    """A few lines for people."""
    served = recipe.teacher
    assert isinstance(served, ServedTeacher)
    costs = [*costs, *_costs_of_signals(recipe, served)]

    def say(text: str) -> None:
        console.print(Text(one_line(text, 1_000)))

    say(f"{served.model} at {served.api}: {prices_of(served.endpoint).line()}")
    for found in costs:
        if not found.prompts:
            say(f"{' and '.join(found.places)}: signals of about {found.tokens:,} tokens")
            say(f"  about {usd(found.nano_usd)}; more where only the end of a document is learned: all of it is sent")
            continue
        kept = f", {found.answered:,} of them answered already" if found.answered else ""
        say(f"{' and '.join(found.places)}: {found.prompts:,} prompts, {found.requests:,} requests{kept}")
        for line in found.left_out:
            say(f"  {line}")
        say(
            f"  at most {usd(found.nano_usd)} and {found.tokens:,} tokens (reserved before it is asked); about "
            f"{usd(found.likely_nano_usd)} if answers are as long as the data's own"
        )
    most = sum(found.nano_usd for found in costs)
    if served.budget is None or served.budget.usd is None:
        say("budget: none. Write `teacher.budget: {usd: ...}`; what would exceed it is never sent")
    else:
        likely = sum(found.likely_nano_usd for found in costs)
        allowed = served.budget.usd * 1e9
        fits = (
            "enough for all of it"
            if most <= allowed
            else "enough for the likely cost"
            if likely <= allowed
            else ("not enough: the run stops there with exit code 4, and goes on with more")
        )
        say(f"budget: ${served.budget.usd:,.2f}, {fits}")
