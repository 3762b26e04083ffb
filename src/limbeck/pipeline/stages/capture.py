"""A teacher's signals on disk: captured once for all arms, seeds and epochs that read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from limbeck.data.corpus import Corpus, open_corpus
from limbeck.data.packing import Rows
from limbeck.errors import StoreError, under
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    Text,
    data_key,
    lease_teacher,
    open_text,
    precision,
)
from limbeck.pipeline.shared.fit import batches_of
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.pipeline.stored.needed import Missing, Needed, Survey
from limbeck.pipeline.stored.room import bytes_a_token, free_bytes
from limbeck.pipeline.stored.stores import (
    Asked,
    fingerprint_of_text,
    scheme_of,
    store_of,
)
from limbeck.recipe import Data, Signals, Training, fingerprint
from limbeck.report.numbers import size
from limbeck.signals.capture import Captured, capture
from limbeck.signals.codec import CODEC
from limbeck.signals.store import Identity, StoreWriter
from limbeck.signals.store.manifest import FILE, read_manifest
from limbeck.workflow.stage import Context, Facts, Plain, Stage, Task

PAYS = 1.5
"""`auto` stores signals where the teacher would otherwise be asked so many times as often."""

ALL_THERE = "all were there"

ROOM = 0.8
"""Part of the free disk that `auto` takes at most."""


@dataclass(frozen=True, kw_only=True)
class Capture(PipelineStage):
    """Has the teacher's signals captured that the arms of all seeds read, as far as the store lacks them.

    What was captured is a shard of the store, which other runs share; a process that is killed loses what was in no
    shard yet.

    Attributes:
        section: what is kept, and where.
        temperature: of the technique: signals are taken at it.
        data, training: sections of the recipe, which say what is read.
        seeds: of the arms; ``arms``: techniques times seeds.
        text: the stage that writes what is learned; None: the corpus.
        decides: `auto`: whether it pays is decided here, and kept.
        place: of the settings in the recipe.
        part: number of a worker, from 0, and of how many; None: it captures what all of them left.
        parts: names of the stages of workers.
    """

    section: Signals
    temperature: float
    data: Data
    training: Training
    seeds: tuple[int, ...]
    arms: int
    text: str | None
    decides: bool
    place: str
    part: tuple[int, int] | None = None
    parts: tuple[str, ...] = ()
    recomputable = True
    urgency = 2  # others wait for it
    version = CODEC

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, *([self.text] if self.text is not None else []), *self.parts)

    @property
    def name(self) -> str:
        settings = self.section.model_dump(mode="json"), self.temperature, self.text, self.decides
        worker = "" if self.part is None else f"-{self.part[0] + 1}of{self.part[1]}"
        return f"capture-{fingerprint(*settings)[:8]}{worker}"

    @property
    def title(self) -> str:
        worker = "" if self.part is None else f", {self.part[0] + 1} of {self.part[1]}"
        return f"capture signals{worker}"

    def side_by_side(self, workers: int) -> list[Stage]:
        """The stages of several processes that do a part each, and this one, which captures what is left."""
        if workers == 1:
            return [self]
        parts = [replace(self, part=(i, workers)) for i in range(workers)]
        return [*parts, replace(self, parts=tuple(part.name for part in parts))]

    def n_threads(self, up: Facts) -> int:
        return max(super().n_threads(up) // (1 if self.part is None else self.part[1]), 1)

    def key(self, up: Facts) -> dict[str, Plain]:
        section = self.training
        return {
            "scheme": scheme_of(self.section, self.temperature).plain(),
            "context": self.section.context,
            "window": self.section.window,
            "precision": precision(section.precision, up[MACHINE]),
            "teacher": up[TEACHER]["fingerprint"],
            "data": data_key(self.data, up[DATA]),
            "rows": [section.tokens, section.micro_batch_size, section.gradient_accumulation_steps, sorted(self.seeds)],
        }

    def lost(self, result: Mapping[str, Plain], folder: Path) -> str | None:
        """A shard that is gone, has another size, or is not named any more; or the manifest."""
        named: dict[Path, set[str]] = {}
        for path, n_bytes in result.get("shards", {}).items():
            file = folder.absolute() / path
            if not file.is_file() or file.stat().st_size != n_bytes:
                return file.name
            try:
                if file.parent not in named:
                    named[file.parent] = {shard.name for shard in read_manifest(file.parent).shards}
            except StoreError:  # raised again by what is then run
                return FILE
            if file.name not in named[file.parent]:
                return f"the line of {file.name} in {FILE}"
        return None

    def check_kept(self, result: Mapping[str, Plain], folder: Path) -> list[str]:
        stores = dict.fromkeys((folder.absolute() / path).parent for path in result.get("shards", {}))
        return [warning for store in stores for warning in self._torn(store)]

    def notes_kept(self, result: Mapping[str, Plain]) -> list[str]:
        captured = f"({result.get('captured', 0):,} captured)"
        return [note.replace(captured, f"({ALL_THERE})") for note in result.get("notes") or ()]

    def _torn(self, folder: Path) -> list[str]:
        """Warnings of lines of a store's manifest that cannot be read."""
        return [
            f"{self.place}: line {number} of {folder / FILE} is torn, and the shard that it named is not read; "
            f"`limbeck signals repair {folder}` adopts it again"
            for number in read_manifest(folder).damaged
        ]

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        text = open_text(context.folder)
        needed = self._needed(up, context.folder, text)
        found = needed.survey(self.part)
        if self.decides and (live := self._live(found.positions, needed, context)) is not None:
            return {"signals": None, "notes": [f"{self.place}: auto: live, {live}"]}
        captured = Captured()
        if found.missing:
            with under(self.place, StoreError):
                captured = self._capture(needed, found, up, context, text)
        if self.part is not None:
            return {"captured": captured.positions}
        for warning in self._torn(needed.folder):
            context.warn(warning)
        now = captured.positions + sum(up[part].get("captured", 0) for part in self.parts)
        return self._facts(needed, now, context.folder)

    def target(self, up: Facts, run: Path) -> tuple[Path, Identity, Corpus]:
        """The store that the arms read, whose signals it holds, and of which documents."""
        needed = self._needed(up, run, open_text(run))
        return needed.folder, needed.identity, needed.rows.corpus

    def _needed(self, up: Facts, run: Path, text: Text) -> Needed:
        corpus = open_corpus(run / "text" / self.text / "corpus") if self.text is not None else text.train
        asked = self.asked(up, run, text)
        identity = asked.identity(self.data, up[DATA], fingerprint_of_text(corpus) if self.text is not None else None)
        rows = Rows(corpus, self.data.seq_len, pack=self.data.pack)
        chosen = {r for seed in self.seeds for r in batches_of(rows, self.training, seed).rows_read()}
        key = f"{self.place}.folder"
        with under(key, StoreError):
            folder = store_of(self.section, run, identity)
        return Needed(rows, sorted(chosen), identity, folder, key)

    def asked(self, up: Facts, run: Path, text: Text) -> Asked:
        """What is kept of the teacher."""
        name = f"{up[TEACHER]['fingerprint']}{'-bf16' if self._is_rounded(up) else ''}"
        with under(self.place):
            return Asked.of(self.section, self.temperature, name, teacher_spec(up, run), text.tokenizer)

    def teacher_name(self, up: Facts, run: Path) -> str:
        """A name of the teacher for people."""
        return teacher_spec(up, run).path

    def _is_rounded(self, up: Facts) -> bool:
        return precision(self.training.precision, up[MACHINE]) == "bf16"

    def _live(self, positions: int, needed: Needed, context: Context) -> str | None:
        """Why the teacher is to answer every batch; None: to store what it says pays. A run keeps what was decided."""
        if context.previous is not None and "signals" in context.previous:
            return "as was decided before" if context.previous["signals"] is None else None
        asked = self.arms * self.training.tokens
        if asked < PAYS * positions:
            return f"of {asked:,} positions that are learned, {positions:,} are different ones"
        takes, free = positions * bytes_a_token(self.section), free_bytes(needed.folder)
        if takes > ROOM * free:
            return f"signals would take about {size(takes)}, and the disk has {size(free)}"
        return None

    def _capture(self, needed: Needed, found: Survey, up: Facts, context: Context, text: Text) -> Captured:
        """Write what the store lacks."""
        worker = "0" if self.part is None else str(self.part[0])
        name = self.teacher_name(up, context.folder)
        with (
            context.task(self.title, found.missing, "tokens") as task,
            StoreWriter(needed.folder, needed.identity, worker, teacher=name) as writer,
        ):
            work = Missing(needed.missing(self.part), found.longest, writer, _progress(task))
            captured = self.have_read(work, up, context, text)
            task.note = _bytes(captured)
        return captured

    def have_read(self, work: Missing, up: Facts, context: Context, text: Text) -> Captured:
        """Have the teacher read what the store lacks."""
        rounded, spec = self._is_rounded(up), teacher_spec(up, context.folder)
        with lease_teacher(spec, text, rounded=rounded, seq_len=work.longest) as lm:
            assert lm.vocab_size == work.writer.identity.vocab_size
            return capture(
                lm,
                work.found,
                work.writer,
                scheme_of(self.section, self.temperature),
                precision="bf16" if rounded else "fp32",
                progress=work.progress,
            )

    def _facts(self, needed: Needed, captured: int, run: Path) -> dict[str, Plain]:
        found, store = needed.survey(), needed.store()
        if found.missing or store is None:
            raise StoreError(
                f"{needed.folder} lacks {found.missing:,} positions that were captured",
                fix="Run it again: something removed them",
            )
        n_bytes = sum(shard.bytes for shard in store.shards)
        a_token = n_bytes / max(store.positions, 1)
        reads = "one arm reads" if self.arms == 1 else f"{self.arms} arms read"
        spans = "in whole spans of documents, " if self.section.context == "document" else ""
        decided = "auto: stored" if self.decides else "stored"
        new = f"{captured:,} captured" if captured else ALL_THERE
        identity = needed.identity.plain()
        return {
            # Arms that were trained stay what they are when the codec becomes another one.
            "signals": fingerprint({name: value for name, value in identity.items() if name != "codec"}),
            "identity": identity,
            "positions": found.positions,
            "captured": captured,
            "bytes_a_token": round(a_token, 2),
            "shards": {
                os.path.relpath(needed.folder / shard.name, run.absolute()): shard.bytes for shard in store.shards
            },
            "notes": [
                f"{self.place}: {decided}, {spans}{reads} {found.positions:,} positions ({new}); "
                f"{needed.folder.name} takes {size(n_bytes)}, {a_token:.1f} bytes a token"
            ],
        }


def _progress(task: Task) -> Callable[[Captured], None]:
    """Shows the speed, the bytes a token, and the time that is left."""
    return lambda captured: task.update(captured.positions, _bytes(captured))


def _bytes(captured: Captured) -> str:
    return f"{captured.bytes_a_token:.1f} bytes/token"
