"""``limbeck signals``: what is in a store, whether it is whole, and ways to mend, join and move it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.errors import RunFolderError, StoreError, counted
from limbeck.pipeline.shared.base import DATA, open_text
from limbeck.signals.exchange.distillkit import export_distillkit
from limbeck.signals.exchange.parquet import export_parquet, exported_signals
from limbeck.signals.store import Store
from limbeck.signals.upkeep.check import Verified
from limbeck.signals.upkeep.check import verify as verify_store
from limbeck.signals.upkeep.join import Copied, copy_into
from limbeck.signals.upkeep.join import merge as merge_stores
from limbeck.signals.upkeep.look import Summary, summary_of
from limbeck.signals.upkeep.mend import repair as repair_store
from limbeck.workflow.lock import is_run


def inspect(folder: Path) -> Summary:
    """What is in a store; also in one that is damaged. Raises StoreError where there is none."""
    return summary_of(folder)


def as_json(found: Summary | Verified) -> str:
    plain = dataclasses.asdict(found)
    if isinstance(found, Summary):
        plain |= {
            "bytes_per_position": round(found.bytes_per_position, 2),
            "entries_per_position": round(found.entries_per_position, 2),
        }
    return json.dumps(plain, indent=1)


def show_summary(found: Summary, console: Console) -> None:
    """A table that fits 80 columns, and what is wrong below it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if found.teacher:
        table.add_row("named", escape(found.teacher))
    for name, value in (found.identity or {}).items():
        table.add_row(name.replace("_", " "), escape(_said(value)))
    rows = {
        "positions": f"{found.positions:,} with a signal",
        "bytes": f"{found.bytes:,}, {found.bytes_per_position:.1f} a token",
        "entries": f"{found.entries:,}, {found.entries_per_position:.1f} a token",
        "documents": f"{found.documents:,}, in {counted(found.spans, 'span')}"
        + (f", {found.twice:,} of them written twice" if found.twice else ""),
        "shards": f"{found.shards:,}" + "".join(f", {n:,} by worker {name}" for name, n in found.workers.items()),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(f"[bold]{escape(found.folder)}[/]" + (f" {found.fingerprint}" if found.fingerprint else ""))
    console.print(table)
    for fault in found.faults:
        console.print(f"[red]✗[/] {escape(fault)}")
    if found.unnamed:
        console.print(
            f"{counted(len(found.unnamed), 'file')} of shards not named by the manifest: a writer is at work, or was "
            "killed"
        )
    if found.faults or found.unnamed:
        console.print(f"`limbeck signals repair {escape(found.folder)}` mends it")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        kind = value.get("kind", "")
        rest = ", ".join(f"{name} {each}" for name, each in value.items() if name != "kind")
        return f"{kind}: {rest}" if rest else str(kind)
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify(folder: Path, console: Console) -> Verified:
    """Read all of a store, and say what is wrong with it.

    Raises:
        StoreError: there is no store.
    """
    found = verify_store(folder)
    for fault in found.faults:
        console.print(f"[red]✗[/] {escape(fault)}")
    whole = f"{counted(found.shards, 'shard')} whole, {counted(found.positions, 'position')}"
    faults = f", {counted(len(found.faults), 'fault')}" if found.faults else ""
    unnamed = f"; {counted(len(found.unnamed), 'file')} not named by the manifest" if found.unnamed else ""
    console.print(f"{escape(str(folder))}: {whole}{faults}{unnamed}")
    return found


def repair(folder: Path) -> list[str]:
    """What was done, a line each."""
    done = repair_store(folder)
    return done.said or [f"{folder} is whole: nothing was done"]


def merge(sources: Sequence[Path], target: Path) -> str:
    """What was copied, for people."""
    return f"{target}: {_copied(merge_stores(sources, target))} from {counted(len(sources), 'store')}"


def _copied(copied: Copied) -> str:
    there = f", {copied.there:,} were there already" if copied.there else ""
    return f"{counted(copied.spans, 'span')} added{there}"


def export(folder: Path, out: Path) -> str:
    """Write a store as Parquet.

    Returns:
        What was written, for people.
    """
    n_bytes = export_parquet(folder, out)
    was = sum(shard.bytes for shard in Store(folder).shards)
    return f"{out}: {n_bytes:,} bytes of Parquet, {100 * n_bytes / was:.0f}% of the store's"


def export_for_distillkit(folder: Path, out: Path, run: Path) -> str:
    """Write the documents of a run, with a top-k store's signals, as DistillKit's raw rows.

    Args:
        run: a run folder: a store does not hold the tokens of its documents.

    Returns:
        What was written, for people.

    Raises:
        RunFolderError: there is no such run, or it has no corpus yet.
        StoreError: the store's scheme is another.
    """
    if not is_run(run) or not (run / DATA / "train").is_dir():
        raise RunFolderError(
            f"there is no run with a corpus in {run}", fix="Name the run that the store was captured for"
        )
    written, left_out = export_distillkit(folder, open_text(run).train, out)
    temperature = Store(folder).identity.scheme["temperature"]
    left = f"; {counted(left_out, 'document')} without a signal at every position left out" if left_out else ""
    return f"{out}: {counted(written, 'document')}, for `preapplied_temperature: {temperature}`{left}"


def import_(source: Path, folder: Path) -> str:
    """Read signals that limbeck exported into a store.

    Returns:
        What was added, for people.
    """
    if not source.is_dir():
        raise StoreError(f"there is no folder {source}", fix="Name the folder that was exported")
    identity, signals = exported_signals(source)
    return f"{folder}: {_copied(copy_into(folder, identity, signals))}"
