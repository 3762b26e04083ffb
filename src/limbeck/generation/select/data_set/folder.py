"""The folder of a data set: Parquet and JSON lines with the same rows, and a card. Equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck.files import whole_folder, write_whole
from limbeck.generation.candidate import Candidate
from limbeck.generation.select.data_set.card import CardFacts, Table, data_set_card
from limbeck.generation.select.data_set.rows import continuation, conversation, json_lines
from limbeck.generation.select.keep import Chosen

ROW_GROUP = 10_000

Row = dict[str, Any]


def write_data_set(folder: Path, chosen: Chosen, facts: CardFacts) -> None:
    """Write ``data.parquet``, ``data.jsonl`` and the card ``README.md``; a folder that stands there is replaced.

    Conversations have ``messages``, continued plain text ``prompt`` and ``completion``. Where there are both, the
    latter are in ``text.parquet`` and ``text.jsonl``.

    Args:
        folder: where; whole or absent.
        chosen: what is learned, and what was set aside.
        facts: for the card.
    """
    conversations = [candidate for candidate in chosen.kept if candidate.text is None]
    texts = [candidate for candidate in chosen.kept if candidate.text is not None]
    tables = []
    with whole_folder(folder) as scratch:
        if conversations or not texts:
            _write(scratch, "data", conversations, conversation)
            tables.append(Table("data", "messages", len(conversations)))
        if texts:
            name = "text" if conversations else "data"
            _write(scratch, name, texts, continuation)
            tables.append(Table(name, "prompt and completion", len(texts)))
        write_whole(scratch / "README.md", data_set_card(chosen, facts, tables))


def write_prompts(path: Path, candidates: Iterable[Candidate]) -> int:
    """Write prompts as JSON lines, one for each, whatever was answered: for those that nobody solved.

    Returns how many.
    """
    seen: set[str] = set()
    lines: list[str] = []
    for candidate in candidates:
        if candidate.prompt in seen:
            continue
        seen.add(candidate.prompt)
        row = conversation(candidate) if candidate.text is None else continuation(candidate)
        kept: Row = {"prompt_id": row["prompt_id"], "reference": row["reference"]}
        if candidate.text is None:
            kept |= {"messages": row["messages"][:-1], "tools": row["tools"]}
        else:
            kept["prompt"] = row["prompt"]
        lines += json_lines([kept])
    write_whole(path, "".join(lines))
    return len(seen)


def _write(folder: Path, name: str, candidates: list[Candidate], row: Callable[[Candidate], Row]) -> None:
    import pyarrow.parquet as parquet

    schema = _schema(row is conversation)
    with (
        (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as lines,
        parquet.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd") as writer,
    ):
        import pyarrow as pa

        for rows in _groups(map(row, candidates)):
            lines.writelines(json_lines(rows))
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while group := list(islice(iterator, ROW_GROUP)):
        yield group


def _schema(conversations: bool) -> Any:
    import pyarrow as pa

    text = pa.string()
    about = [
        ("prompt_id", text), ("sample", pa.int32()), ("teacher", text), ("model", text), ("outcome", text),
        ("verdict", text), ("reference", text), ("key", text),
    ]  # fmt: skip
    if not conversations:
        return pa.schema([("prompt", text), ("completion", text), *about])
    function = pa.struct([("name", text), ("arguments", text)])
    calls = pa.list_(pa.struct([("id", text), ("type", text), ("function", function)]))
    message = pa.struct(
        [
            ("role", text), ("content", text), ("reasoning_content", text), ("name", text), ("tool_call_id", text),
            ("tool_calls", calls),
        ]
    )  # fmt: skip
    return pa.schema([("messages", pa.list_(message)), ("tools", text), *about])
