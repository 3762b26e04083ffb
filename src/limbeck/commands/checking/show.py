"""A plan as lines and as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping

from limbeck.commands.checking.plan import Plan, size_of
from limbeck.errors import counted

WIDTH = 80
"""Columns of what is printed."""


def show_plan(plan: Plan) -> Iterator[str]:
    """Lines of ``WIDTH`` columns."""
    for number, source in enumerate(plan.sources):
        yield from _line("data" if not number else "", source)
    for line in plan.data:
        yield from _line("", line)
    for name, lines in plan.models.items():
        for number, line in enumerate(lines):
            yield from _line("" if number else name, line)
    for number, line in enumerate(plan.training):
        yield from _line("" if number else "training", line)
    for number, line in enumerate(plan.text):
        yield from _line("" if number else "text", line)
    if plan.memory is not None:
        yield from _line("memory", f"about {size_of(plan.memory)} for the largest training, and its activations")
    if plan.students is not None and plan.checkpoints is not None:
        free = f"; {size_of(plan.free)} are free" if plan.free is not None else ""
        models, checkpoints = size_of(plan.students), size_of(plan.checkpoints)
        yield from _line("disk", f"models up to {models}, checkpoints up to {checkpoints} while an arm trains{free}")
    yield from _line("run", f"{plan.run}: {_so_far(plan.stages)}")


def _so_far(stages: Mapping[str, int]) -> str:
    if not stages:
        return "new"
    waiting = stages.get("run", 0) + stages.get("wait", 0)
    said = [f"{counted(stages.get('keep', 0), 'stage')} kept", f"{waiting} to run"]
    if stages.get("refuse"):
        said.append(f"{stages['refuse']} refused")
    return ", ".join(said)


def _line(name: str, text: str) -> list[str]:
    first, rest = f"{name:<10} ", " " * 11
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def as_json(plan: Plan) -> str:
    return json.dumps(dataclasses.asdict(plan), indent=1)
