"""Small real things to test on: a trained tokenizer, toy models, a corpus, recipes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "LIMBECK_TEST_GPU" not in os.environ:
    # Most tests hold tensors on the CPU, or compare bytes, which only a CPU repeats. `make test-gpu` shows the GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

torch.set_num_threads(1)

WORDS = tuple(
    "the cat sat on a mat and saw one big dog run over blue hills while rain fell softly at night".split()  # noqa: SIM905
)


def story(number: int, words: int = 24) -> str:
    """A sentence that depends on its number alone."""
    return " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(words)) + f" {number}."


@pytest.fixture(autouse=True)
def no_proofs_in_the_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests prove does not take the place of what the user has proven."""
    home = tmp_path_factory.getbasetemp() / "proofs"
    monkeypatch.setattr("limbeck.pipeline.beforehand.proofs.cache_folder", lambda: home)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [story(i, 8 + i % 30) for i in range(80)]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Any:
    from limbeck.models.tokenizer import train_tokenizer

    return train_tokenizer(texts, 320)


@pytest.fixture
def corpus_file(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}


@pytest.fixture
def llama() -> dict[str, Any]:
    return copy.deepcopy(LLAMA)


@pytest.fixture
def make_lm(tokenizer: Any) -> Callable[..., Any]:
    """A toy language model: ``make_lm(seed=1, hidden_size=48)``."""
    from limbeck.models.load import load_model
    from limbeck.recipe import ConfigModel

    def make(seed: int = 0, seq_len: int | None = None, **sizes: Any) -> Any:
        return load_model(ConfigModel(config={**LLAMA, **sizes}), tokenizer, seed=seed, seq_len=seq_len)

    return make


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A toy teacher as a ``save_pretrained`` folder."""
    from limbeck.models.folders.save import save_model
    from limbeck.models.load import load_model
    from limbeck.recipe import ConfigModel

    folder = tmp_path_factory.mktemp("models") / "teacher"
    config = {**LLAMA, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 512}
    save_model(load_model(ConfigModel(config=config), tokenizer, seed=7), folder)
    return folder


@pytest.fixture
def raw_recipe(tmp_path: Path, corpus_file: Path, teacher_folder: Path) -> dict[str, Any]:
    """A whole recipe in plain data, small enough to run in seconds."""
    return {
        "run": str(tmp_path / "run"),
        "teacher": {"path": str(teacher_folder)},
        "student": {"config": copy.deepcopy(LLAMA)},
        "data": {"corpus": [{"text": str(corpus_file), "separator": "\n\n"}], "heldout": 0.2, "seq_len": 32},
        "threads": 1,
        "jobs": 1,
        "techniques": ["alone", "soft", {"kind": "hard", "generation": {"batch_size": 8}}, "co"],
        "training": {"tokens": 1500, "micro_batch_size": 4, "checkpoint_every_steps": 3, "log_every_steps": 2},
        "evaluation": {"max_documents": 10, "bootstrap": 100, "samples": 2, "sample_tokens": 6, "speed_tokens": 4},
    }


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets and small trained models, where there is one."""
    named = os.environ.get("LIMBECK_REAL_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("set LIMBECK_REAL_DATA to a folder with real data to run this")
    return Path(named)
