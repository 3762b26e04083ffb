from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from limbeck.commands.cost import costs_of, show_costs
from limbeck.errors import RecipeError
from limbeck.generation.api.protocols import encode, wire_format
from limbeck.generation.journal.budget import input_bound
from limbeck.generation.journal.journal import Journal
from limbeck.generation.prompts import Prompt, requests_for
from limbeck.generation.request import Completion, Outcome
from limbeck.pipeline.text.sample import journal_of
from limbeck.recipe import Recipe, ServedTeacher, parse_recipe

MODEL = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n} plus {n}?", "response": str(2 * n)} for n in range(40)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]},
    ]}) + "\n" for row in rows))  # fmt: skip
    return path


def recipe(corpus: Path, teacher: dict[str, Any] | None = None, **generation: Any) -> Recipe:
    asked = {"samples": 3, "max_prompts": 10, "max_new_tokens": 100, **generation}
    prices = {"input": 1.0, "output": 10.0}
    return parse_recipe(
        {
            "run": str(corpus.parent / "runs/sums"),
            "teacher": {"api": "http://127.0.0.1:9/v1", "model": "m", "prices": prices, **(teacher or {})},
            "student": {"config": MODEL},
            "tokenizer": {"train": {"vocab_size": 300}},
            "data": {"corpus": [{"jsonl": str(corpus)}], "seq_len": 64, "heldout": 0.1},
            "techniques": [
                "alone",
                {"kind": "hard", "generation": asked},
                {"kind": "hard", "name": "all", "generation": {**asked, "keep": "all"}},
            ],
            "training": {"tokens": 1000},
        }
    )


def test_the_bound_is_what_is_reserved_and_texts_that_share_answers_count_once(corpus: Path) -> None:
    (found,) = costs_of(recipe(corpus))
    assert found.places == ["techniques.1", "techniques.2"]
    assert (found.prompts, found.requests, found.answered) == (10, 30, 0)
    mine = recipe(corpus)
    assert isinstance(mine.teacher, ServedTeacher)
    prompt = Prompt(({"role": "user", "content": "What is 11 plus 11?"},), None, (), "22", "")
    request = next(requests_for(prompt, mine.techniques[1].generation, 64))  # type: ignore[union-attr]
    body = encode(wire_format("chat").body(mine.teacher.endpoint, request))
    each = (input_bound(body) * 1 + 100 * 10) * 1000  # nano-USD
    assert found.nano_usd == pytest.approx(30 * each, rel=0.01)
    assert found.likely_nano_usd < found.nano_usd / 10


def test_answers_in_the_journal_cost_nothing(corpus: Path) -> None:
    mine = recipe(corpus)
    assert isinstance(mine.teacher, ServedTeacher)
    endpoint = mine.teacher.endpoint
    everything = costs_of(mine)[0]
    rows = [json.loads(line)["messages"] for line in corpus.read_text().splitlines()]
    generation: Any = mine.techniques[1].generation  # type: ignore[union-attr]
    with Journal(journal_of(endpoint, Path(mine.run), "")) as journal:
        for messages in rows:
            prompt = Prompt((messages[0],), None, (), "", "")
            for request in list(requests_for(prompt, generation, 64))[:2]:
                journal.put(request, endpoint.identity, Completion(Outcome.COMPLETE, "x"))
    rest = costs_of(mine)[0]
    assert (rest.requests, rest.answered) == (30, 20)
    assert rest.nano_usd == pytest.approx(everything.nano_usd / 3, rel=0.01)


@pytest.mark.parametrize(
    ("usd", "said"), [(100, "enough for all"), (0.01, "enough for the likely"), (1e-6, "exit code 4"), (None, "none")]
)
def test_the_budget_is_compared(corpus: Path, usd: float | None, said: str) -> None:
    mine = recipe(corpus, {"budget": {"usd": usd}} if usd else {})
    console = Console(width=300)
    with console.capture() as captured:
        show_costs(mine, costs_of(mine), console)
    assert said in captured.get()


def test_signals_are_counted(corpus: Path, tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    raw = recipe(corpus).model_dump(mode="json", exclude_none=True)
    soft = {"kind": "soft", "signals": {"scheme": "top_k", "k": 20}}
    raw |= {"tokenizer": {"path": str(tmp_path / "tokenizer")}, "seeds": [0, 1]}
    raw["techniques"] = ["alone", soft, {**soft, "name": "more", "divergence": "reverse_kl"}]
    console = Console(record=True, width=200)
    show_costs(parse_recipe(raw), [], console)
    said = console.export_text()
    assert "techniques.1 and techniques.2: signals of about 2,000 tokens" in said
    assert "about $0.002" in said


def test_a_model_without_prices_is_a_question(corpus: Path) -> None:
    with pytest.raises(RecipeError, match="prices") as caught:
        costs_of(recipe(corpus, {"prices": None}))
    assert caught.value.key == "teacher.prices"
