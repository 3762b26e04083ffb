"""What is measured while training: ``metrics.jsonl`` is the record, TensorBoard a view of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.training.loss_graph import Tally


class Meter:
    """Means over the tokens between two lines of ``metrics.jsonl``.

    Args:
        folder: where ``metrics.jsonl`` and the TensorBoard events go.
        resume_at: bytes of ``metrics.jsonl`` that belong to the state resumed from (what was
            written after that checkpoint is cut off: it will be written again), and its step.
    """

    def __init__(self, folder: Path, resume_at: tuple[int, int] = (0, 0)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        size, step = resume_at
        self.file = (folder / "metrics.jsonl").open("ab")
        self.file.truncate(min(size, self.file.seek(0, 2)))
        self.file.seek(0, 2)
        self.board = Board(folder / "tensorboard", step)
        self.clock = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, list[Any]] = {}
        self.window_tokens, self.window_start = 0, time.monotonic()

    def add(self, tallies: dict[str, Tally]) -> None:
        for name, tally in tallies.items():
            sums = self.sums.setdefault(name, [0.0, 0.0, None])
            sums[0] = sums[0] + tally.loss.double()
            sums[1] = sums[1] + tally.count.double()
            if tally.agreement is not None:
                sums[2] = (0.0 if sums[2] is None else sums[2]) + tally.agreement.double()

    def count(self, tokens: int) -> None:
        self.window_tokens += tokens

    def means(self) -> dict[str, float]:
        """Per loss term, its mean over the tokens of the window; per learner, what it minimises: their weighted sum."""
        return {name: float(loss / max(float(count), 1.0)) for name, (loss, count, _) in self.sums.items()}

    def line(self, step: int, tokens: int, extra: dict[str, float]) -> None:
        """Write one line, for the window that ends with this step; numbers that are not finite are left out."""
        elapsed = max(time.monotonic() - self.window_start, 1e-9)
        record: dict[str, Any] = {"step": step, "tokens": tokens, **extra}
        for name, (loss, count, agreement) in self.sums.items():
            record[f"loss/{name}"] = float(loss / max(float(count), 1.0))
            if agreement is not None:
                record[f"agreement/{name}"] = float(agreement / max(float(count), 1.0))
        record["tokens_per_second"] = round(self.window_tokens / elapsed, 1)
        record["seconds"] = round(self.seconds(), 3)
        record = {key: value for key, value in record.items() if math.isfinite(value)}
        self.file.write((json.dumps(record) + "\n").encode())
        self.file.flush()
        self.board.write(step, {key: value for key, value in record.items() if key not in ("step", "seconds")})
        self._reset()

    def seconds(self) -> float:
        """Time spent training so far, in earlier processes too."""
        return time.monotonic() - self.clock

    def position(self) -> int:
        """Bytes of metrics.jsonl written so far."""
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        self.board.close()


class Board:
    """TensorBoard events, written at once.

    tensorboardX's own ``SummaryWriter`` hands them to a thread through a queue; an interrupt that lands in the queue
    leaves it such that closing the writer waits for ever.

    Args:
        folder: of the events.
        resume_at: events of later steps, from an earlier process, are void; 0: there is none.
    """

    def __init__(self, folder: Path, resume_at: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if resume_at:
            start = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(wall_time=time.time(), step=resume_at, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        found = [scalar(key, value).value[0] for key, value in values.items()]
        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def loss_said(losses: Mapping[str, float]) -> str:
    """What is minimised and what it is made of, in words: ``loss 2.871 (teacher 0.410, labels 3.120)``.

    Args:
        losses: from :meth:`Meter.means`. Parts are without their weights; of several learners, no parts are said.
    """
    learners = {name: loss for name, loss in losses.items() if "<" not in name}
    if len(learners) != 1:
        return f"loss {', '.join(f'{name} {loss:.3f}' for name, loss in learners.items())}" if learners else ""
    loss = next(iter(learners.values()))
    parts = {part.split("<", 1)[1]: value for part, value in losses.items() if "<" in part}
    said = ", ".join(f"{part} {value:.3f}" for part, value in parts.items())
    return f"loss {loss:.3f} ({said})" if len(parts) > 1 else f"loss {loss:.3f}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a torn last line (a kill while writing) is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records
