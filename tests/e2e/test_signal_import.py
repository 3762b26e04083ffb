"""Log-probabilities that somebody else wrote, into the store that a recipe's training reads; and out again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limbeck.commands.signals.imported import import_for
from limbeck.data.corpus import open_corpus
from limbeck.display import Display
from limbeck.errors import InputError, LimbeckError, RecipeError
from limbeck.models.load import load_model
from limbeck.pipeline.shared.base import open_text
from limbeck.recipe import PathModel, parse_recipe
from limbeck.signals.exchange.parquet import export_parquet
from limbeck.signals.store import Store
from tests.e2e.test_stored import captured, go, raw, sharp_folder
from tests.unit.signals.stores import grid
from tests.unit.signals.stores import write as write_store

__all__ = ["raw", "sharp_folder"]


def limbeck(*words: object) -> str:
    """What the command prints."""
    done = subprocess.run([sys.executable, "-m", "limbeck", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


SIGNALS = {"scheme": "top_k", "k": 12}


def vllm_lines(run: Path, teacher: Path, file: Path, k: int) -> None:
    """What vLLM would answer for the documents of a run."""
    text = open_text(run)
    model = load_model(PathModel(path=str(teacher)), text.tokenizer).model.eval()
    corpus = open_corpus(run / "data" / "train")
    with file.open("w") as out:
        for d in range(len(corpus)):
            ids = corpus.document(d)[0].astype(int).tolist()
            with torch.no_grad():
                top = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1).topk(k)
            said: list[Any] = [None]
            for tokens, values in zip(top.indices[:-1].tolist(), top.values[:-1].tolist(), strict=True):
                ranked = enumerate(zip(tokens, values, strict=True), 1)
                said.append({str(t): {"logprob": p, "rank": rank} for rank, (t, p) in ranked})
            out.write(json.dumps({"choices": [{"prompt_token_ids": ids, "prompt_logprobs": said}]}) + "\n")


@pytest.fixture
def file(raw: dict[str, Any], sharp_folder: Path, tmp_path: Path) -> Path:
    raw["techniques"] = [{"kind": "soft", "signals": SIGNALS}]
    (facts,) = captured(raw, run=str(tmp_path / "elsewhere" / "one"))
    assert facts["captured"]
    vllm_lines(tmp_path / "elsewhere" / "one", sharp_folder, tmp_path / "vllm.jsonl", 12)
    return tmp_path / "vllm.jsonl"


def test_a_training_reads_what_was_imported(
    raw: dict[str, Any], file: Path, tmp_path: Path, sharp_folder: Path
) -> None:
    said = import_for(parse_recipe(raw), file, Display(quiet=True))
    assert "rows are as they stand" in said
    (facts,) = captured(raw)
    assert facts["captured"] == 0, "a capture finds all of it there"
    report = go(raw)
    assert len(report.rows) >= 2
    (folder,) = (tmp_path / "runs" / "signals").iterdir()
    assert Store(folder).identity.scheme["k"] == 12
    assert "were there already" in import_for(parse_recipe(raw), file, Display(quiet=True))
    # Out again, as DistillKit's rows, and in from those.
    out = limbeck("signals", "export", folder, tmp_path / "out", "--distillkit", raw["run"])
    assert "preapplied_temperature: 1.0" in out
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**raw, "run": str(tmp_path / "third" / "one")}))
    assert "rows are as they stand" in limbeck("signals", "import", tmp_path / "out", tmp_path / "recipe.yaml")
    (third,) = (tmp_path / "third" / "signals").iterdir()
    assert len(Store(third)) > 0


def test_an_own_export_needs_no_recipe(raw: dict[str, Any], tmp_path: Path) -> None:
    write_store(tmp_path / "store", grid(3))
    export_parquet(tmp_path / "store", tmp_path / "cold")
    for source in (tmp_path / "cold", next((tmp_path / "cold").iterdir())):
        with pytest.raises(InputError, match=r"is limbeck's own export.*Name a store folder instead of a recipe"):
            import_for(parse_recipe(raw), source, Display(quiet=True))


def test_what_a_recipe_must_say(raw: dict[str, Any], file: Path) -> None:
    raw["techniques"] = [{"kind": "soft", "signals": "stored"}]
    with pytest.raises(RecipeError, match="scheme top_k and context document"):
        import_for(parse_recipe(raw), file, Display(quiet=True))
    path, techniques = {"path": raw["teacher"]["path"]}, [{"kind": "soft", "signals": SIGNALS}]
    served = {"api": "http://localhost:9", "model": "m"}
    with pytest.raises(RecipeError, match="proven by the teacher's weights"):
        import_for(
            parse_recipe({**raw, "teacher": served, "tokenizer": path, "techniques": techniques}),
            file,
            Display(quiet=True),
        )
    raw["techniques"] = [{"kind": "soft", "signals": SIGNALS, "temperature": 2.0}]
    with pytest.raises(LimbeckError, match="does not say what the teacher says"):
        import_for(parse_recipe(raw), file, Display(quiet=True))
