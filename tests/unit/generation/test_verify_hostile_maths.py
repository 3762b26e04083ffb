"""Formulas that take for ever, or all memory, or that no parser expects."""

from __future__ import annotations

import multiprocessing
import threading
import time
from typing import Any

import pytest

from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.request import Completion, Outcome
from limbeck.generation.verify import verify
from limbeck.generation.verify.maths import maths_check
from limbeck.generation.verify.workers import Job, Worker
from limbeck.recipe.verify import Maths


def hostile() -> list[str]:
    """200 of them, each of its own kind or size."""
    found = []
    for n in (3, 5, 9, 20, 60):
        found += [
            "10^{" * n + "10" + "}" * n,
            "\\sqrt{" * n * 20 + "2" + "}" * n * 20,
            "\\frac{1}{1+" * n * 10 + "1" + "}" * n * 10,
            "(" * n * 50 + "1" + ")" * n * 50,
            "{" * n * 200,
            "!" * n + "9" * n,
            f"{10**n}!",
            f"({'9' * n}!)!",
            f"\\binom{{{10**n}}}{{{10 ** (n // 2)}}}",
            f"\\sum_{{k=1}}^{{{10**n}}} \\frac{{1}}{{k^2}}",
            f"\\prod_{{k=1}}^{{{10**n}}} k",
            f"\\int_0^{{{n}}} e^{{x^{n}}} \\sin(x^{n}) dx",
            f"\\lim_{{x \\to 0}} \\frac{{\\sin(x^{n})}}{{\\tan^{n}(x)}}",
            f"(x+y+z+w)^{{{n * 100}}}",
            f"\\gcd({'7' * n * 100}, {'3' * n * 100})",
            "9" * n * 5_000,
            "0." + "3" * n * 5_000,
            "x^2+" * n * 100 + "1",
            "\\begin{pmatrix}" + "1&" * n * 20 + "\\\\" * n + "\\end{pmatrix}",
            "\\begin{pmatrix}" + "x & y \\\\ z & w" + f"\\end{{pmatrix}}^{{{10**n}}}",
            "\\{" + ",".join(str(i) for i in range(n * 100)) + "\\}",
            "\\cup".join(f"({i},{i + 1})" for i in range(n * 10)),
            f"\\log_{{{'2^' * n}2}} {{{'9^' * n}9}}",
            "\\sin(" * n * 5 + "x" + ")" * n * 5,
            "\\left(" * n * 10,
            "\\boxed{" * n * 10,
            "$" * n * 1_000,
            "\\frac" * n * 100,
            "\\text{" + "a b " * n * 500 + "}",
            "1,000," * n * 100,
            "= " * n * 100 + "1",
            "x=1, " * n * 50,
            "\\pm" * n + "1",
            "%" * n * 1_000,
            "\x00" * n + "1",
            "\ud800" * n + "2^{2",
            "𝟙" * n * 100 + "²" * n,
            "\\%\\$\\#" * n * 50,
            f"\\mathrm{{lcm}}({', '.join(str(i) for i in range(1, n * 20))})",
            f"{n}^{{{n}^{{{n}^{{{n}}}}}}} \\bmod {10**n + 7}",
        ]
    return found


def candidates(texts: list[str]) -> list[Candidate]:
    return [
        Candidate(
            "p", (), "Q", (), "42", i, Completion(Outcome.COMPLETE, f"So it is $\\boxed{{{text}}}$."), "t", str(i)
        )
        for i, text in enumerate(texts)
    ]


def verdicts(texts: list[str]) -> list[Verdict | None]:
    return [each.verdict for each in verify(candidates(texts), Maths(), jobs=2)]


def test_there_are_200() -> None:
    assert len(set(hostile())) == len(hostile()) == 200


@pytest.mark.slow
def test_each_is_decided_or_given_up_in_its_time() -> None:
    """By CPU time: a machine that does other things too takes longer by the clock."""
    section = Maths()
    worker = Worker(Job(maths_check, section, section.seconds))
    found: dict[Verdict, int] = {}
    longest = 0.0
    try:
        for candidate in candidates(hostile()):
            worker.start()
            begun = time.monotonic()
            verdict = worker.check(candidate)
            longest = max(longest, time.monotonic() - begun)
            found[verdict] = found.get(verdict, 0) + 1
    finally:
        worker.close()
    print(f"200 hostile formulas: {found}, the longest {longest:.2f} s by the clock")
    assert Verdict.CORRECT not in found


def _in_process(texts: list[str], sent: Any) -> None:
    sent.put([verdict and verdict.value for verdict in verdicts(texts)])


@pytest.mark.slow
def test_verdicts_are_the_same_from_a_thread_and_from_processes() -> None:
    texts = [*hostile()[::25], "42", "\\frac{84}{2}", "41", "42.0"]
    here = verdicts(texts)
    assert set(here) == {Verdict.CORRECT, Verdict.WRONG, Verdict.UNDECIDED}
    in_thread: list[list[Verdict | None]] = []
    thread = threading.Thread(target=lambda: in_thread.append(verdicts(texts)))
    thread.start()
    thread.join()
    assert in_thread == [here]
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        received = context.Queue()
        process = context.Process(target=_in_process, args=(texts, received), daemon=True)
        process.start()
        assert received.get(timeout=600) == here
        process.join()
