"""What a vocabulary cut to the tokens of some text takes off a real model, and that it changes nothing else.

    python benchmarks/vocabulary.py --text TinyStories-train.txt MODEL [MODEL ...]

A MODEL is a folder, a hub name, a ``.gguf`` file, or ``package: FILE``. For each, before and after the cut to
the tokens that occur in the text (with the row for all dropped ones): tokens, parameters, bytes of the saved
bfloat16 weights, tokens per second read (4 rows of 256, all next-token logits, float32) and written (greedy,
one text at a time). Then the proof: on the first ``--texts`` documents the new tokenizer gives the old ids,
renumbered; and on the first 20 of them the mean loss of the untrained cut model equals the uncut one's with its
softmax over the kept tokens.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from limbeck.evaluation.speed import generation_speed
from limbeck.formats.localise import localised
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.saved import quiet
from limbeck.models.load import load_model
from limbeck.models.restricted import KeptTokens
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pruning.vocabulary import VocabularyCut, cut_vocabulary
from limbeck.recipe import PackageModel, PathModel
from limbeck.runtime.world import device
from objective import machine

ROOT = Path(__file__).parent.parent
ROWS, LENGTH, WRITTEN = 4, 256, 64


def best_rate(tokens: int, work: Callable[[], Any], repeats: int = 5) -> float:
    """Tokens per second of the fastest repeat after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return tokens / min(seconds)


def saved_bytes(model: Any) -> int:
    """Bytes of ``save_pretrained`` in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        dtype = model.dtype
        model.to(torch.bfloat16).save_pretrained(folder)
        model.to(dtype)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


@torch.no_grad()
def sizes_and_speeds(model: Any, tokenizer: Any, ids: list[int]) -> list[float]:
    """Tokens, parameters, bytes, tokens read and written per second."""
    rows = torch.tensor(ids[: ROWS * LENGTH]).view(ROWS, LENGTH)
    speeds = [
        best_rate(rows.numel(), lambda: model(rows, use_cache=False).logits),
        generation_speed(CausalLM(model, tokenizer), ids[:32], WRITTEN),
    ]
    parameters = sum(p.numel() for p in model.parameters())
    return [model.config.get_text_config().vocab_size, parameters, saved_bytes(model), *speeds]


@torch.no_grad()
def losses_on_kept(model: Any, cut: VocabularyCut, ids: list[list[int]]) -> tuple[float, float]:
    """Nats per token of the cut model, and of the uncut one with its softmax over the kept tokens."""
    to_student, n = cut.kept.to_student(), len(cut.kept.ids_K)
    sums, tokens = [0.0, 0.0], 0
    for row in ids:
        before = torch.tensor([row[:LENGTH]])
        labels = to_student[before[0, 1:]]
        both = (cut.model(to_student[before]).logits[0, :-1, :n], model(before).logits[0, :-1, cut.kept.ids_K])
        for i, logits in enumerate(both):
            sums[i] += float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
        tokens += len(labels)
    return sums[0] / tokens, sums[1] / tokens


def equal_ids(new: Any, kept: KeptTokens, texts: list[str], ids: list[list[int]]) -> int:
    """On how many texts the new tokenizer gives the old ids, renumbered."""
    to_student = kept.to_student()
    return sum(after == to_student[before].tolist() for before, after in zip(ids, new(texts)["input_ids"], strict=True))


def measured(where: str, documents: list[str], texts: int) -> list[str]:
    package = where.removeprefix("package:").strip()
    spec = PackageModel(package=package) if where.startswith("package:") else PathModel(path=where)
    path, _ = localised(spec)
    tokenizer = load_tokenizer(path.path)
    model = load_model(path, tokenizer, device=device()).core.float().eval()
    ids = tokenizer(documents)["input_ids"]
    counts = Counter(i for row in ids for i in row)
    cut = cut_vocabulary(model, tokenizer, counts, other=True, added="used")
    student = cut.model.float().eval()
    flat = [i for row in ids for i in row][: ROWS * LENGTH]
    before = sizes_and_speeds(model, tokenizer, flat)
    after = sizes_and_speeds(student, cut.tokenizer, cut.kept.to_student()[flat].tolist())
    ours, theirs = losses_on_kept(model, cut, ids[:20])
    same = equal_ids(cut.tokenizer, cut.kept, documents[:texts], ids[:texts])

    def cells(values: list[float]) -> str:
        size, parameters, held, read, written = values
        return f"{size:,.0f} | {parameters / 1e6:.1f}M | {held / 1e6:.0f} MB | {read:,.0f} | {written:.1f}"

    return [
        f"| {Path(where).name} | {cells(before)} | |",
        f"| cut | {cells(after)} | {same}/{min(texts, len(documents))} texts; {ours:.6f} against {theirs:.6f} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder, hub name, .gguf file or `package:FILE`")
    parser.add_argument("--text", required=True, type=Path, help="documents parted by <|endoftext|>")
    parser.add_argument("--texts", type=int, default=1000, help="documents whose ids are compared")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/vocabulary-DATE.md")
    arguments = parser.parse_args()
    quiet()
    documents = [one.strip() for one in re.split(r"<\|endoftext\|>", arguments.text.read_text()) if one.strip()]
    lines = [f"# A vocabulary cut to its text, {date.today()}", "", machine(), ""]
    lines += [f"{arguments.text.name}, {len(documents):,} documents.", ""]
    lines += [
        "| model | tokens | parameters | bfloat16 weights | tokens/s read | tokens/s written | ids equal; loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for where in arguments.models:
        lines += measured(where, documents, arguments.texts)
    print("\n".join(lines))
    if arguments.save:
        (ROOT / "benchmarks" / "results" / f"vocabulary-{date.today()}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
