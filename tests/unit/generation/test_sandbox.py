"""Programs that try to do harm, in the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from limbeck.generation.sandbox import programs
from limbeck.generation.sandbox.programs import Limits, SandboxError, available, python_program, run_program
from tests.unit.generation import hostile

SOURCE = Path(programs.__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
BWRAP = os.environ.get("LIMBECK_TEST_BWRAP") or shutil.which("bwrap")
needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or not available(), reason="this system refuses user namespaces"
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("a key")
    return path


@needs_namespaces
def test_hostile_programs_do_no_harm(secret: Path) -> None:
    assert len(hostile.PROGRAMS) >= 16
    assert hostile.escapes(secret) == {}
    assert secret.read_text() == "a key"


@pytest.mark.slow
@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="nobody may not run this Python")
def test_hostile_programs_do_no_harm_where_nobody_runs_them() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(SOURCE / "limbeck", f"{folder}/src/limbeck", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(hostile.__file__, f"{folder}/hostile.py")
        Path(f"{folder}/secret").write_text("a key")
        done = subprocess.run(
            ["/usr/bin/python3", "-B", f"{folder}/hostile.py", f"{folder}/secret"],
            env={"PYTHONPATH": f"{folder}/src", "PATH": "/usr/bin:/bin"},
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {}


@pytest.mark.slow
@pytest.mark.skipif(BWRAP is None, reason="bwrap is not installed")
def test_hostile_programs_do_no_harm_in_bwrap(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(str(BWRAP)).parent}:{os.environ['PATH']}")
    monkeypatch.setattr(programs, "_found", ["bwrap"])
    assert available().startswith("bwrap")
    escaped = hostile.escapes(secret)
    escaped.pop("10,000 files", None)  # bwrap limits their size alone
    assert escaped == {}


@needs_namespaces
def test_the_program_is_nobody_on_the_host_too() -> None:
    marker = f"limbeck-nobody-{os.getpid()}"
    program = python_program(["-c", "import time; time.sleep(600)", marker])
    cancelled = threading.Event()
    thread = threading.Thread(target=run_program, args=(program, Limits(seconds=60)), kwargs={"cancelled": cancelled})
    thread.start()
    found: list[int] = []
    for _ in range(600):
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if marker.encode() in line:
                found.append(int(entry.name))
        if found:
            break
        time.sleep(0.05)
    uids = {tuple(_status(pid, "Uid")) for pid in found}
    capabilities = {value for pid in found for name in ("CapEff", "CapPrm", "CapBnd") for value in _status(pid, name)}
    cancelled.set()
    thread.join()
    wanted = str(65534 if os.geteuid() == 0 else os.geteuid())
    assert uids == {(wanted,) * 4}
    assert capabilities == {"0" * 16}
    assert hostile.left_running(marker) == []


def _status(pid: int, name: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))


@needs_namespaces
def test_a_program_gets_its_files_and_input_and_gives_its_output() -> None:
    code = "import sys; print(open('a.txt').read() + sys.stdin.read()); sys.stderr.write('e'); sys.exit(3)"
    large = b"x" * 500_000
    result = run_program(python_program(["-c", code], {"a.txt": b"file "}, large))
    assert (result.ended, result.status, result.stderr) == ("exit", 3, b"e")
    assert result.stdout == b"file " + large + b"\n"
    assert not result.ok
    assert run_program(python_program(["-c", "import ssl, sqlite3, ctypes, numbers"])).ok


@needs_namespaces
def test_a_program_that_does_not_read_its_input_is_no_error() -> None:
    assert run_program(python_program(["-c", "pass"], stdin=b"x" * 5_000_000)).ok


@needs_namespaces
def test_a_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SandboxError, match="No such file"):
        run_program(programs.Program(["/usr/bin/no-such-program"]))


@pytest.mark.parametrize("name", ["../x", "", "..", "a/b"])
def test_files_stay_in_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        run_program(python_program(["-c", "pass"], {name: b""}))


DENIED = """
from limbeck.generation.sandbox import syscalls, calls
from limbeck.generation.sandbox.programs import *
syscalls.forbid_new_privileges()
syscalls.install_filter(calls.call_filter(network=True))
assert available() == ""
try:
    run_program(python_program(["-c", "print(1)"]))
except SandboxError as error:
    print(error)
print(run_program(python_program(["-c", "print('weak')"]), weak=True).stdout.decode())
"""


def test_where_namespaces_are_refused_so_does_limbeck() -> None:
    """A filter of system calls refuses them, as containers and hardened kernels do."""
    done = subprocess.run(
        [sys.executable, "-c", DENIED], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refusal, weak = done.stdout.split("\n")[:2]
    assert "unshare: Operation not permitted" in refusal
    assert "sandbox: weak" in refusal
    assert weak == "weak"


def test_the_weak_sandbox_has_limits_and_hides_files(secret: Path) -> None:
    code = f"""
import os, socket
for path in ({str(secret)!r}, "/etc/passwd", "/proc/self/environ", "/proc/1/cmdline"):
    try: print("ESCAPED", open(path).read())
    except PermissionError: pass
for family in (2, 10, 16, 40):
    try: print("ESCAPED", socket.socket(family, socket.SOCK_DGRAM))
    except OSError: pass
for pid in ({os.getpid()}, os.getppid(), -1, 0):
    try: os.kill(pid, 9); print("ESCAPED", pid)
    except PermissionError: pass
try: open("/tmp/limbeck-escaped", "w"); print("ESCAPED", "/tmp")
except PermissionError: pass
open("own", "w").write("x")
if os.fork() == 0:
    os.setsid()
    import time; time.sleep(600)
"""
    marker = f"limbeck-weak-{os.getpid()}"
    result = run_program(python_program(["-c", code, marker]), hostile.LIMITS, weak=True)
    assert (result.ended, result.stdout, result.stderr) == ("exit", b"", b"")
    assert hostile.left_running(marker) == []
    for code, ended in (("while True: print(1)", "output"), ("import time; time.sleep(99)", "time")):
        assert run_program(python_program(["-c", code, marker]), hostile.LIMITS, weak=True).ended == ended
    assert hostile.left_running(marker) == []


@needs_namespaces
def test_a_sandbox_that_the_system_ends_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the memory of the machine runs out: the first process is killed from outside."""
    watched = programs._descendants

    def kill_first(pid: int) -> list[int]:
        found = watched(pid)
        for first in found[:1] if len(found) > 1 else []:
            os.kill(first, 9)
        return found

    monkeypatch.setattr(programs, "_descendants", kill_first)
    result = run_program(python_program(["-c", "import time; time.sleep(60)"]))
    assert (result.ended, result.status, result.ok) == ("signal", None, False)


@needs_namespaces
def test_a_launcher_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_ROOT", "/nowhere")
    with pytest.raises(SandboxError, match="cannot be made"):
        run_program(python_program(["-c", "pass"]))
