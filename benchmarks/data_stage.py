"""The data stage beside ``datasets.map(batched=True, num_proc=2)`` with the same tokenizer: same ids, MB/s, memory.

    python benchmarks/data_stage.py TOKENIZER_FOLDER --mb 200

The text is the standard library's sources, its paragraphs drawn anew for every document (2 KB on average), so that no
two are the same. limbeck's side is what a run does: JSON lines are read, hashed and spooled, tokenised, and written
with masks. The peer's side is JSON lines, ``map``, and a concatenation: Arrow's buffers written one after another,
which is as fast as it can be, or the ``group_texts`` of transformers' ``run_clm.py``, which is what people run.
Each runs in a fresh process without a cache. Reported: MB of text per second of wall time and per CPU-second of the
process and its children, the greatest resident set of the process (of the peer with its workers), and of limbeck also
a run that is killed halfway and goes on, which must end with the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def write_text(path: Path, mb: int) -> None:
    """JSON lines with a ``text`` of some 2 KB each."""
    paragraphs = []
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if not {"site-packages", "test", "tests"} & set(source.parts):
            try:
                paragraphs += [p for p in source.read_text(encoding="utf-8").split("\n\n") if p.strip()]
            except UnicodeDecodeError:
                continue
    rng, size = random.Random(0), 0
    with path.open("w", encoding="utf-8") as out:
        while size < mb * 1_000_000:
            text = "\n\n".join(rng.choices(paragraphs, k=8))
            size += len(text.encode())
            out.write(json.dumps({"text": text}) + "\n")


def ours(tokenizer_folder: str, text: Path, folder: Path) -> None:
    """Spool, tokenise, write; goes on with what is there."""
    from transformers import AutoTokenizer

    from limbeck.data.corpus import Encoder, write_corpus
    from limbeck.data.documents.sources import documents
    from limbeck.data.documents.spool import Spool
    from limbeck.recipe import JsonlSource

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    start = time.monotonic()
    place = folder / "spool"
    spool = Spool(place) if Spool.is_done(place) else Spool.write(place, documents((JsonlSource(jsonl=str(text)),)))
    print(f"spool {time.monotonic() - start:.1f} s", file=sys.stderr)
    write_corpus(folder / "corpus", Encoder(spool, tokenizer), range(len(spool)))


def _mapped(tokenizer_folder: str, text: Path, folder: Path) -> Any:
    """Ids of every document by ``datasets.map`` in two processes."""
    import datasets
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker is one thread, as the library advises
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder / "cache"))
    return rows.map(
        lambda batch: {"ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        num_proc=2,
        remove_columns=["text"],
    )


def grouped(tokenizer_folder: str, text: Path, folder: Path) -> None:
    """The peer as ``run_clm.py`` of transformers has it: a second ``map`` joins documents into blocks of 1,024 ids."""
    from itertools import chain

    def group_texts(batch: dict[str, Any]) -> dict[str, Any]:
        ids = list(chain(*batch["ids"]))
        return {"ids": [ids[i : i + 1024] for i in range(0, len(ids), 1024)]}

    _mapped(tokenizer_folder, text, folder).map(group_texts, batched=True, num_proc=2)


def theirs(tokenizer_folder: str, text: Path, folder: Path) -> None:
    """The peer with the fastest concatenation: Arrow's buffers written one after another."""
    import numpy as np

    ids = _mapped(tokenizer_folder, text, folder)
    with (folder / "ids.bin").open("wb") as out, (folder / "lengths.bin").open("wb") as lengths:
        for batch in ids.with_format("arrow").iter(1000):
            column = batch["ids"].combine_chunks()
            out.write(column.flatten().to_numpy().astype(np.uint32).tobytes())
            lengths.write(np.diff(column.offsets.to_numpy()).astype(np.int64).tobytes())


def same_ids(ours: Path, theirs: Path, text: Path) -> int:
    """Tokens; asserts that each document has the same on both sides, between limbeck's opening and EOS tokens."""
    import numpy as np

    from limbeck.data.corpus import open_corpus
    from limbeck.data.documents.document import Document

    corpus = open_corpus(ours / "corpus")
    ids = np.memmap(theirs / "ids.bin", np.uint32, "r")
    lengths = np.fromfile(theirs / "lengths.bin", np.int64)
    ends = np.cumsum(lengths)
    with text.open(encoding="utf-8") as lines:
        for line, end, length in zip(lines, ends, lengths, strict=True):
            document = Document(text=json.loads(line)["text"])
            key = np.uint64(int(document.key[:16], 16))
            d = int(np.searchsorted(corpus.keys, key))
            assert corpus.keys[d] == key
            found, mask = corpus.document(d)
            wanted = ids[end - length : end]
            assert np.array_equal(found[mask == 1], wanted), document.beginning()
    return int(lengths.sum())


def measured(side: str, arguments: argparse.Namespace, text: Path, folder: Path, kill_after: float = 0) -> list[Any]:
    """[wall seconds, CPU seconds, MB of the greatest resident set] of one side in a fresh process tree."""
    import psutil

    command = [sys.executable, __file__, arguments.tokenizer, "--side", side, "--text", str(text), "--to", str(folder)]
    folder.mkdir(exist_ok=True)
    before, start = os.times(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        if kill_after and time.monotonic() - start > kill_after:
            process.kill()
        try:
            tree = psutil.Process(process.pid)
            peak = max(peak, sum(p.memory_info().rss - p.memory_info().shared for p in [tree, *tree.children(True)]))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)
    wall, after = time.monotonic() - start, os.times()
    assert kill_after or process.returncode == 0
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return [wall, cpu, peak / 1e6]


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted((folder / "corpus").iterdir()):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", help="a folder with a tokenizer.json")
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--alone", action="store_true", help="limbeck only")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/data_stage-MBmb-DATE.md")
    parser.add_argument("--side", choices=["ours", "theirs", "grouped"], help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sides: dict[str, Callable[[str, Path, Path], None]] = {"ours": ours, "theirs": theirs, "grouped": grouped}
    if arguments.side:
        sides[arguments.side](arguments.tokenizer, arguments.text, arguments.to)
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    from limbeck.runtime.provenance import machine, versions

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        text = home / "text.jsonl"
        write_text(text, arguments.mb)
        found = {"limbeck": measured("ours", arguments, text, home / "ours")}
        if not arguments.alone:
            found["datasets.map, 2 processes, buffers"] = measured("theirs", arguments, text, home / "theirs")
            found["datasets.map, 2 processes, group_texts"] = measured("grouped", arguments, text, home / "grouped")
            tokens = same_ids(home / "ours", home / "theirs", text)
        else:
            tokens = int((home / "ours/corpus/ids.bin").stat().st_size // 4)
        measured("ours", arguments, text, home / "killed", kill_after=found["limbeck"][0] / 2)
        found["limbeck, the rest after a kill halfway"] = measured("ours", arguments, text, home / "killed")
        assert digest(home / "ours") == digest(home / "killed")
    where, load = machine(), os.getloadavg()[0]
    libraries = ", ".join(f"{name} {versions()[name]}" for name in ("tokenizers", "transformers", "datasets"))
    lines = [
        f"# The data stage, {date.today()}",
        "",
        f"{where['cpu']}, {where['cores']} cores, {libraries}; load at the end {load:.1f}",
        "",
        f"{Path(arguments.tokenizer).name}, {arguments.mb:,} MB of text, {tokens:,} tokens"
        + ("." if arguments.alone else ", the same on both sides."),
        "",
        "| | seconds | MB/s | MB per CPU-second | resident MB |",
        "|---|---|---|---|---|",
    ]
    for name, (wall, cpu, peak) in found.items():
        rates = ("", "") if "kill" in name else (f"{arguments.mb / wall:.2f}", f"{arguments.mb / cpu:.2f}")
        lines.append(f"| {name} | {wall:.1f} | {rates[0]} | {rates[1]} | {peak:,.0f} |")
    print("\n".join(lines))
    if arguments.save:
        path = ROOT / "benchmarks" / "results" / f"data_stage-{arguments.mb}mb-{date.today()}.md"
        path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
