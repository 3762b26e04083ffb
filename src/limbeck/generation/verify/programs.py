"""Answers that are programs, run against tests in the sandbox."""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

from limbeck.generation.candidate import Candidate, Verdict
from limbeck.generation.sandbox.programs import Limits, Result, python_program, run_program
from limbeck.generation.verify.texts import code_blocks
from limbeck.recipe.verify import Code

_WALL = 6
"""Times the CPU time: a program that sleeps, or is kept waiting by a busy machine, is ended after it."""
_HARNESS = """
def main():
    import json, os, sys, types
    job = json.load(sys.stdin)
    sys.stdin = open(os.devnull)
    program = sys.modules["program"] = types.ModuleType("program")
    exec(compile(job["program"], "program.py", "exec"), program.__dict__)
    exec(compile(job["tests"], "tests.py", "exec"), program.__dict__)
    sys.stdout.flush()
    os.write(1, job["passed"].encode())
main()
"""
"""A program that ends the process before its tests have run has not passed: it does not know what to write."""


def find_program(text: str) -> str:
    """The last code block in Python, or the whole text."""
    blocks = code_blocks(text, ("python", "py", "python3"))
    return blocks[-1] if blocks else text


def code_check(section: Code, cancelled: threading.Event) -> Callable[[Candidate], Verdict]:
    """The verifier for programs. One that uses too much CPU time or memory is wrong; one that waits is undecided.

    Its check raises SandboxError where the sandbox cannot be made.
    """
    seconds = math.ceil(section.seconds)
    limits = Limits(seconds=section.seconds * _WALL, cpu_seconds=seconds, memory_mb=section.memory_mb)
    weak = section.sandbox == "weak"

    def run(arguments: list[str], files: dict[str, bytes], stdin: bytes) -> Result:
        return run_program(python_program(arguments, files, stdin), limits, weak=weak, cancelled=cancelled)

    def asserts(program: str, tests: str) -> Verdict:
        passed = secrets.token_hex(16)
        job = json.dumps({"program": program, "tests": tests, "passed": passed})
        result = run(["-c", _HARNESS], {}, job.encode())
        return _verdict(result, result.stdout.endswith(passed.encode()))

    def stdio(program: str, tests: str) -> Verdict:
        cases = list(_cases(tests))
        if not cases:
            return Verdict.UNDECIDED
        source = program.encode("utf-8", "surrogatepass")
        for given, wanted in cases:
            result = run(["program.py"], {"program.py": source}, given.encode("utf-8", "surrogatepass"))
            verdict = _verdict(result, _lines(result.stdout.decode("utf-8", "replace")) == _lines(wanted))
            if verdict is not Verdict.CORRECT:
                return verdict
        return Verdict.CORRECT

    def check(candidate: Candidate) -> Verdict:
        if candidate.reference is None:
            return Verdict.UNDECIDED
        program = find_program(candidate.completion.text)
        return (asserts if section.tests == "asserts" else stdio)(program, candidate.reference)

    return check


def _verdict(result: Result, passed: bool) -> Verdict:
    lost = result.ended == "signal" and result.status is None
    if result.ended == "time" or lost:
        return Verdict.UNDECIDED
    return Verdict.CORRECT if result.ok and passed else Verdict.WRONG


def _lines(text: str) -> list[str]:
    """Spaces at the ends of lines and empty lines at the end do not count."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _cases(tests: str) -> Iterator[tuple[str, str]]:
    """Inputs and outputs; none where the tests cannot be read."""
    try:
        plain: Any = json.loads(tests)
    except ValueError:
        return
    if isinstance(plain, dict):
        inputs, outputs = plain.get("inputs"), plain.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            return
        plain = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    if not isinstance(plain, list):
        return
    cases = [(case.get("input"), case.get("output")) for case in plain if isinstance(case, dict)]
    strings = [(given, wanted) for given, wanted in cases if isinstance(given, str) and isinstance(wanted, str)]
    if len(strings) == len(plain):
        yield from strings
