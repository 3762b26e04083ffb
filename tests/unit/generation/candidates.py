"""Answers for tests."""

from __future__ import annotations

from typing import Any

from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.request import Completion, Outcome

VERDICTS = {"c": Verdict.CORRECT, "w": Verdict.WRONG, "u": Verdict.UNDECIDED, "": None}


def answer(
    text: str, prompt: str = "What is it?", sample: int = 0, verdict: str = "", outcome: str = "complete", **more: Any
) -> Candidate:
    """An answer to a question of a user. ``verdict``: c, w or u."""
    said = {name: more.pop(name) for name in ("reasoning", "tool_calls", "model") if name in more}
    plain: dict[str, Any] = {
        "prompt": f"id:{prompt}",
        "messages": ({"role": "user", "content": prompt},),
        "text": more.pop("continued", None),
        "tools": (),
        "reference": None,
        "sample": sample,
        "completion": Completion(Outcome(outcome), text, **said),
        "teacher": "teacher",
        "key": f"{prompt}/{sample}/{text[:20]}",
        "verdict": VERDICTS[verdict],
    }
    return Candidate(**{**plain, **more})
