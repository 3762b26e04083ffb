"""Soft distillation end to end: limbeck beside plain torch and TRL's GKDTrainer on the same two random models.

    python benchmarks/objective_end_to_end.py --python .venv-bench/bin/python

Shapes: two Llamas (student 128 wide with 2 layers, teacher 256 with 4) with 32,000 and 128,000 tokens; and
Gemma 3 270M, teacher and student, with its 262,144. Float32, forward KL (GKD's ``beta = 0``, off-policy), 4
rows of 512 tokens, AdamW. Each side trains in a fresh process; a step is data, both forwards, loss, backward
and the optimizer. Reported: student tokens per CPU-second of the cheapest step after the first, and the peak
resident set of the whole process, which is stopped where it wants more than ``--memory-gb``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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


def gemma(seed: int) -> Any:
    """The shape of google/gemma-3-270m, with random weights."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512, query_pre_attn_scalar=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


@dataclass(frozen=True)
class Shape:
    """Two models of one vocabulary."""

    vocabulary: int
    student: Callable[[], Any]
    teacher: Callable[[], Any]


SHAPES = {
    "Llamas, 32,000": Shape(32_000, lambda: llama(128, 2, 32_000), lambda: llama(256, 4, 32_000)),
    "Llamas, 128,000": Shape(128_000, lambda: llama(128, 2, 128_000), lambda: llama(256, 4, 128_000)),
    "Gemma 3 270M, 262,144": Shape(262_144, lambda: gemma(0), lambda: gemma(1)),
}


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


def trl_gkd(shape: Shape, steps: int, folder: str) -> list[float]:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    costs: list[float] = []
    trainer = GKDTrainer(
        model=shape.student(),
        teacher_model=shape.teacher(),
        args=GKDConfig(**settings(folder, steps), lmbda=0.0, beta=0.0, max_length=TOKENS),
        data_collator=collate,
        train_dataset=data(shape.vocabulary, steps),
        processing_class=tokenizer(shape.vocabulary),
        callbacks=[meter(costs)],
    )
    trainer.train()
    return costs


def limbeck_trainer(shape: Shape, steps: int, folder: str) -> list[float]:
    from transformers import TrainingArguments

    from limbeck.integrations.hf_trainer import DistillationTrainer

    costs: list[float] = []
    trainer = DistillationTrainer(
        model=shape.student(),
        teacher=shape.teacher(),
        args=TrainingArguments(**settings(folder, steps)),
        data_collator=collate,
        train_dataset=data(shape.vocabulary, steps),
        processing_class=tokenizer(shape.vocabulary),
        callbacks=[meter(costs)],
    )
    trainer.train()
    return costs


def steps_of(shape: Shape, steps: int, loss_of: Callable[[Any, Any, Any], Any]) -> list[float]:
    """A loop of plain torch around a loss of student, teacher and token ids."""
    import torch

    student, teacher = shape.student(), shape.teacher().eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    rows, costs = data(shape.vocabulary, steps), []
    for step in range(steps):
        start = time.process_time()
        batch = collate([rows[step * ROWS + i] for i in range(ROWS)])
        loss_of(student, teacher, batch["input_ids"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        costs.append(time.process_time() - start)
    return costs


def plain_torch(shape: Shape, steps: int, folder: str) -> list[float]:
    """What everybody writes first: all the logits, log-softmax, ``kl_div``."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    def loss_of(student: Any, teacher: Any, ids: Any) -> Any:
        own = student(ids).logits[:, :-1].log_softmax(-1).flatten(0, 1)
        with torch.no_grad():
            theirs = teacher(ids).logits[:, :-1].log_softmax(-1).flatten(0, 1)
        return F.kl_div(own, theirs, reduction="batchmean", log_target=True)

    return steps_of(shape, steps, loss_of)


def limbeck_plain(shape: Shape, steps: int, folder: str) -> list[float]:
    """The recipe of docs/objective.md in a loop of plain torch."""
    import torch

    from limbeck import Dense, Term, fused_divergence

    def loss_of(student: Any, teacher: Any, ids: Any) -> Any:
        hidden = student.get_decoder()(ids).last_hidden_state[:, :-1].flatten(0, 1)
        with torch.no_grad():
            seen = teacher.get_decoder()(ids).last_hidden_state[:, :-1].flatten(0, 1)
        term = Term(Dense(seen, teacher.lm_head.weight), weight=1.0 / len(hidden))
        return fused_divergence(hidden, student.lm_head.weight, [term]).loss_sum

    return steps_of(shape, steps, loss_of)


def limbeck_loop(shape: Shape, steps: int, folder: str) -> list[float]:
    """limbeck's own loop, as ``limbeck run`` calls it: a corpus on disk, a graph, a loss term, checkpoints off."""
    from limbeck.data.chat.encode import Encoded
    from limbeck.data.corpus import open_corpus, write_encoded
    from limbeck.data.packing import Rows
    from limbeck.models.load import load_model
    from limbeck.recipe import PathModel, Training
    from limbeck.runtime.world import device
    from limbeck.signals.live import LiveTeacher
    from limbeck.training.loop import TrainingJob, train
    from limbeck.training.loss_graph import LossGraph, LossTerm
    from limbeck.training.sources import CorpusBatches

    home, words = Path(folder), tokenizer(shape.vocabulary)
    for name, make in {"student": shape.student, "teacher": shape.teacher}.items():
        make().save_pretrained(home / name)
        words.save_pretrained(home / name)
    rows = data(shape.vocabulary, steps)["input_ids"]
    documents = (Encoded([*row, 1], [False] + [True] * TOKENS, 0) for row in rows)
    write_encoded(home / "corpus", documents, {})
    section = Training(tokens=steps * ROWS * TOKENS, micro_batch_size=ROWS, lr=1e-4)
    student, teacher = (
        load_model(PathModel(path=str(home / name)), words, device=device()) for name in ("student", "teacher")
    )
    graph = LossGraph({"student": student}, [LossTerm("student", "teacher")], {"teacher": LiveTeacher(teacher)})
    batches = CorpusBatches(
        Rows(open_corpus(home / "corpus"), TOKENS, pack=False),
        tokens=section.tokens, micro_batch_size=ROWS, gradient_accumulation_steps=1, seed=0,
    )  # fmt: skip
    marks = [time.process_time()]
    train(graph, batches, TrainingJob(section, home, seed=0), on_step=lambda *_: marks.append(time.process_time()))
    return [end - start for start, end in itertools.pairwise(marks)]


SIDES: dict[str, Callable[[Shape, int, str], list[float]]] = {
    "TRL GKDTrainer": trl_gkd,
    "plain torch": plain_torch,
    "limbeck": limbeck_loop,
    "limbeck in Trainer": limbeck_trainer,
    "limbeck in plain torch": limbeck_plain,
}


def run_side(name: str, shape: Shape, steps: int, memory_gb: float) -> dict[str, float]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # A refusal is better than a machine that swaps, or kills something else.
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gb * 1e9),) * 2)
    with tempfile.TemporaryDirectory() as folder:
        costs = SIDES[name](shape, steps, folder)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return {"tokens_per_cpu_s": ROWS * TOKENS / min(costs[1:]), "peak_gb": peak / 1e9}


def child(arguments: argparse.Namespace, name: str, shape: str) -> dict[str, float] | None:
    """The measurement of one side, None where the memory did not suffice."""
    python = arguments.python if name.startswith("TRL") else sys.executable
    environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [python, __file__, "--child", name, shape, str(arguments.steps), str(arguments.memory_gb)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode and (any(s in done.stderr for s in ("allocate memory", "not enough memory", "MemoryError"))):
        return None
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter with TRL installed")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--memory-gb", type=float, default=22.0, help="stop a side that wants more")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/objective_end_to_end-DATE.md")
    arguments = parser.parse_args()
    lines = [
        "| models, vocabulary | side | tokens per CPU-second | of TRL's | peak GB | of TRL's |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for shape in arguments.shapes:
        base: dict[str, float] | None = None
        for name in SIDES:
            row = child(arguments, name, shape)
            if row is None:
                lines.append(f"| {shape} | {name} | more than {arguments.memory_gb:.0f} GB | | | |")
            else:
                base = row if name.startswith("TRL") else base
                speed = f"{row['tokens_per_cpu_s'] / base['tokens_per_cpu_s']:.1f}x" if base else ""
                memory = f"{row['peak_gb'] / base['peak_gb']:.2f}" if base else ""
                lines.append(
                    f"| {shape} | {name} | {row['tokens_per_cpu_s']:.0f} | {speed} | {row['peak_gb']:.2f} | {memory} |"
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
        name, shape, steps, memory_gb = sys.argv[2:]
        print(json.dumps(run_side(name, SHAPES[shape], int(steps), float(memory_gb))))
    else:
        main()
