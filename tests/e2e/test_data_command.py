"""`limbeck data`: what is recognised and learned, before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck import cli
from limbeck.models.folders.save import save_model
from limbeck.models.load import load_model
from limbeck.models.tokenizer import train_tokenizer
from limbeck.recipe import ConfigModel

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = "a [bold]dog\x1b[0m"
SIZES = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["limbeck", *arguments])
    cli.main()


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    tokenizer = train_tokenizer(["what is a cat. a dog. [bold]"], 300)
    tokenizer.chat_template = CHATML
    save_model(load_model(ConfigModel(config=SIZES), tokenizer), tmp_path / "teacher")
    rows = [
        {
            "conversations": [{"from": "human", "value": "cat?\u27e6"}, {"from": "gpt", "value": "a [bold]dog\x1b[0m"}],
            "id": 1,
        },
        {"messages": [{"role": "user", "content": "so"}]},
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "teacher": {"path": str(tmp_path / "teacher")},
        "student": {"config": SIZES},
        "data": {"corpus": [{"files": str(tmp_path / "d.jsonl")}]},
        "techniques": ["alone"],
        "training": {"tokens": 10},
    }


def test_it_shows_what_is_learned(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    _main(monkeypatch, "data", str(tmp_path / "r.yaml"), "--show", "2")
    out = capsys.readouterr().out
    assert "data.corpus.0, first documents: 1 ShareGPT conversations (`conversations`)" in out
    assert "not read: id" in out
    assert "1 of its conversations hold no words of an `assistant` (roles: user)" in out.replace("\n", " ")
    assert "<|im_start|>assistant⏎\n⟦a [bold]dog\\x1b[0m⟧⟦<|im_end|>⟧⏎" in out
    assert "cat?\\u27e6<" in out  # a bracket of the text is not one that means a label
    assert f"{len('a [bold]dog') + 4} bytes of words" in out.replace("\n", " ")


def test_a_tokenizer_that_is_still_to_be_trained(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["teacher"] = {"config": SIZES, "pretraining": {"tokens": 10}}
    recipe["tokenizer"] = {"train": {"vocab_size": 300}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    _main(monkeypatch, "data", str(tmp_path / "r.yaml"), "--show", "1")
    out = capsys.readouterr().out
    assert "still to be trained" in out
    assert "a [bold]dog\\x1b[0m" in out


def test_what_a_run_would_say_of_the_documents_is_said(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Duplicates, documents longer than a row, tokens that somebody typed, and no more than `max_documents`."""
    pair = {"question": "what is a cat " * 9, "answer": "<|endoftext|>"}
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in (pair, pair, {"text": "third"})))
    recipe["data"] = {"corpus": [{"files": str(tmp_path / "d.jsonl"), "max_documents": 2}], "seq_len": 32}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    _main(monkeypatch, "data", str(tmp_path / "r.yaml"), "--show", "3")
    out = capsys.readouterr().out.replace("\n", " ")
    assert "1 of them are duplicates" in out
    assert "longer than data.seq_len (32)" in out
    assert "2 documents hold the tokenizer's control tokens as text (<|endoftext|>)" in out
    assert "third" not in out
