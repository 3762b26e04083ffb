"""Soft distillation end to end: limbeck's objective and TRL's GKDTrainer on the same two random Llamas.

    python benchmarks/objective_end_to_end.py --python .venv-bench/bin/python

Student 128 wide with 2 layers, teacher 256 with 4, float32, forward KL (GKD's ``beta = 0``, off-policy),
4 rows of 512 tokens, AdamW. Each side trains in a fresh process; a step is data, both forwards, loss,
backward and the optimizer. Reported: student tokens per CPU-second of the cheapest step after the first, and
the peak resident set of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROWS, TOKENS = 4, 512
ROOT = Path(__file__).parent.parent


def llama(width: int, layers: int, vocabulary: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(width)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=TOKENS,
    )
    return LlamaForCausalLM(config)


def tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="t0", eos_token="t1")


def data(vocabulary: int, steps: int) -> Any:
    import torch
    from datasets import Dataset

    torch.manual_seed(0)
    return Dataset.from_dict({"input_ids": torch.randint(2, vocabulary, (steps * ROWS, TOKENS)).tolist()})


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def meter(costs: list[float]) -> Any:
    """A callback that notes the CPU-seconds of every step."""
    from transformers import TrainerCallback

    class Meter(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            costs.append(time.process_time() - self.start)

    return Meter()


def settings(folder: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder, "per_device_train_batch_size": ROWS, "max_steps": steps, "use_cpu": True,
        "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "learning_rate": 1e-4, "gradient_checkpointing": False,
    }  # fmt: skip


def trl_gkd(vocabulary: int, steps: int, folder: str) -> list[float]:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    costs: list[float] = []
    trainer = GKDTrainer(
        model=llama(128, 2, vocabulary),
        teacher_model=llama(256, 4, vocabulary),
        args=GKDConfig(**settings(folder, steps), lmbda=0.0, beta=0.0, max_length=TOKENS),
        data_collator=collate,
        train_dataset=data(vocabulary, steps),
        processing_class=tokenizer(vocabulary),
        callbacks=[meter(costs)],
    )
    trainer.train()
    return costs


def limbeck_trainer(vocabulary: int, steps: int, folder: str) -> list[float]:
    from transformers import TrainingArguments

    from limbeck.integrations.hf_trainer import DistillationTrainer

    costs: list[float] = []
    trainer = DistillationTrainer(
        model=llama(128, 2, vocabulary),
        teacher=llama(256, 4, vocabulary),
        args=TrainingArguments(**settings(folder, steps)),
        data_collator=collate,
        train_dataset=data(vocabulary, steps),
        processing_class=tokenizer(vocabulary),
        callbacks=[meter(costs)],
    )
    trainer.train()
    return costs


def limbeck_plain(vocabulary: int, steps: int, folder: str) -> list[float]:
    """The recipe of docs/objective.md in a loop of plain torch."""
    import torch

    from limbeck import Dense, Term, fused_divergence

    student, teacher = llama(128, 2, vocabulary), llama(256, 4, vocabulary).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    rows, costs = data(vocabulary, steps), []
    for step in range(steps):
        start = time.process_time()
        batch = collate([rows[step * ROWS + i] for i in range(ROWS)])
        hidden = student.get_decoder()(batch["input_ids"]).last_hidden_state[:, :-1].flatten(0, 1)
        with torch.no_grad():
            seen = teacher.get_decoder()(batch["input_ids"]).last_hidden_state[:, :-1].flatten(0, 1)
        term = Term(Dense(seen, teacher.lm_head.weight), weight=1.0 / len(hidden))
        fused_divergence(hidden, student.lm_head.weight, [term]).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
        costs.append(time.process_time() - start)
    return costs


SIDES: dict[str, Callable[[int, int, str], list[float]]] = {
    "TRL GKDTrainer": trl_gkd,
    "limbeck in Trainer": limbeck_trainer,
    "limbeck in plain torch": limbeck_plain,
}


def run_side(name: str, vocabulary: int, steps: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        costs = SIDES[name](vocabulary, steps, folder)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return {"tokens_per_cpu_s": ROWS * TOKENS / min(costs[1:]), "peak_gb": peak / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter with TRL installed")
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[32_000, 128_000])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/objective_end_to_end-DATE.md")
    arguments = parser.parse_args()
    lines = [
        "| vocabulary | side | tokens per CPU-second | of TRL's | peak GB | of TRL's |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for vocabulary in arguments.vocabularies:
        base: dict[str, float] | None = None
        for name in SIDES:
            python = arguments.python if name.startswith("TRL") else sys.executable
            environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(ROOT / "src")}
            command = [python, __file__, "--child", name, str(vocabulary), str(arguments.steps)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            row = json.loads(done.stdout.splitlines()[-1])
            base = base or row
            lines.append(
                f"| {vocabulary:,} | {name} | {row['tokens_per_cpu_s']:.0f} | "
                f"{row['tokens_per_cpu_s'] / base['tokens_per_cpu_s']:.1f}x | {row['peak_gb']:.2f} | "
                f"{row['peak_gb'] / base['peak_gb']:.2f} |"
            )
            print(lines[-1], flush=True)
    if arguments.save:
        sys.path.insert(0, str(Path(__file__).parent))
        from objective import machine

        path = ROOT / "benchmarks" / "results" / f"objective_end_to_end-{date.today()}.md"
        head = f"# Soft distillation end to end, {date.today()}\n\n{machine()}\n\n"
        path.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_side(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
