"""Every architecture does what limbeck promises, or is refused with its reason; the table in docs/architectures.md.

``make test-architectures`` runs this and writes the table.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.architectures.cases import CASES
from tests.architectures.trial import Trial, tried

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"

REFUSED = {
    "bert": "not a causal language model",
    "dbrx": "rope_theta",  # transformers 5.24 cannot build one
}
UNPACKED = {
    # positions come from the row, not from `position_ids`
    "bloom", "mpt", "opt", "xglm", "biogpt", "openai-gpt",
    # masks are made without `position_ids`
    "gpt_oss",
    # a state is carried on from position to position
    "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "zamba2", "nemotron_h", "granitemoehybrid",
    "recurrent_gemma", "rwkv", "xlstm", "lfm2", "minimax", "qwen3_next", "qwen3_5_text",
}  # fmt: skip
WITHOUT_ADAPTERS = {
    "jamba": "past their adapters",
    "zamba2": "past their adapters",
    "phimoe": "does not run with adapters",
    "llama4_text": "does not run with adapters",
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), "incompatible with Mamba"),
}
WITHOUT_HIDDEN = {"gemma3n_text": "another shape"}

_SEEN: dict[str, Trial] = {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_an_architecture(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    trial = _SEEN[kind] = tried(kind, CASES[kind], tokenizer, tmp_path)
    if kind in REFUSED:
        assert REFUSED[kind] in trial.refused
        return
    check(trial)


def check(trial: Trial) -> None:
    assert not trial.refused
    assert trial.packs == (trial.kind not in UNPACKED)
    assert trial.moved <= 1e-5
    assert trial.kl <= 1e-6
    assert trial.steps == {"alone": True, "soft": True, "co": True}
    assert WITHOUT_ADAPTERS.get(trial.kind, "exact") in trial.lora
    assert WITHOUT_HIDDEN.get(trial.kind, "yes" if trial.kind != "openai-gpt" else "no final norm") in trial.hidden


@pytest.mark.slow
def test_the_table_in_the_docs() -> None:
    if set(_SEEN) != set(CASES):
        pytest.skip("needs all architectures in this session")
    text = table(list(_SEEN.values()))
    if os.environ.get("LIMBECK_WRITE_DOCS"):
        DOCS.write_text(text)
    assert DOCS.read_text() == text


def table(trials: list[Trial]) -> str:
    taken = [trial for trial in trials if not trial.refused]
    lines = [
        "# Architectures",
        "",
        f"Written by `make test-architectures`, which tries {len(trials)} tiny configurations: {len(taken)} are taken,",
        f"{sum(trial.packs for trial in taken)} of them with packed rows. Any other causal language model of "
        "transformers may be tried:",
        "the same proofs run whenever a model is loaded, and what fails them is refused by name.",
        "",
        "- **packed**: the states of a document in a packed row are those of the document alone (at most 1e-5 apart,",
        "  relative, in float32), whatever stands beside it. Elsewhere `data.pack: false` is demanded.",
        "- **KL**: of a student that is its teacher, saved and loaded, at most 1e-6 nats per token.",
        "- **step**: a step of `alone`, `soft` and `co` gives every learner finite gradients, the opening token too.",
        "- **LoRA**: merged adapters compute what they did beside the weights.",
        "- **hidden**: hidden-state terms (`hidden`) get the states before the final norm.",
        "- **checkpointing**: `training.gradient_checkpointing` is possible.",
        "",
        "| `model_type` | packed | KL | step | LoRA (`all-linear`) | hidden | checkpointing |",
        "|---|---|---|---|---|---|---|",
    ]
    for trial in trials:
        if trial.refused:
            lines.append(f"| `{trial.kind}` | refused: {trial.refused} | | | | | |")
            continue
        cells = [
            "exact" if trial.packs else "`pack: false`",
            "≤ 1e-6" if trial.kl <= 1e-6 else f"{trial.kl:.0e}",
            ", ".join(name for name, fine in trial.steps.items() if fine),
            trial.lora if trial.lora == "exact" else "refused: " + _reason(trial.lora),
            {"yes": "before the norm"}.get(trial.hidden) or _reason(trial.hidden),
            "yes" if trial.checkpointing else "refused",
        ]
        lines.append(f"| `{trial.kind}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _reason(said: str) -> str:
    return next((short for part, short in _SHORT.items() if part in said), said)


_SHORT = {
    "past their adapters": "reads weights past their adapters",
    "does not run with adapters": "its router is adapted and breaks",
    "incompatible with Mamba": "peft refuses `out_proj`",
    "another shape": "refused: its layers' states have another shape",
}
