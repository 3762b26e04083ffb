"""Programs that nobody has read, run where they can do no harm.

With namespaces (Linux) a program sees a root in memory with the system's libraries, read-only; no network, no
processes but its own, no host's files. It is nobody, has no capabilities, may make no namespaces, and is limited in
time, memory, processes, files and output. Everything that it started ends with it.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from limbeck.errors import LimbeckError

Ended = Literal["exit", "signal", "time", "memory", "processes", "output"]
Kind = Literal["namespaces", "bwrap", "weak"]
_PACKAGE = Path(__file__).resolve().parent
_ROOT = str(Path(__file__).resolve().parents[3])
_LAUNCH = (
    "import sys; sys.path.insert(0, {root!r}); from limbeck.generation.sandbox.launcher import main; main({handle})"
)
_INSIDE = "/limbeck"
"""Where the launcher is found inside bwrap's root."""
_OURS: dict[Kind, int] = {"namespaces": 1, "bwrap": 2, "weak": 0}
"""How many processes below the first are not the program's."""
_NOBODY = 65534
_WATCH_SECONDS = 0.05
_GRACE_SECONDS = 5.0
_STARTING_SECONDS = 60.0


class SandboxError(LimbeckError):
    """This system does not let programs be locked in."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of each process.
        memory_mb: of each process by address space, and of all together.
        disk_mb: in its folder, which is in memory.
        files: files and folders in its folder.
        processes: at a time.
        open_files: of each process.
        output_bytes: on standard output and standard error, each.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_mb: int = 512
    disk_mb: int = 64
    files: int = 1024
    processes: int = 32
    open_files: int = 64
    output_bytes: int = 1 << 20


@dataclass
class Result:
    """How a program ended.

    Attributes:
        ended: by itself, by a signal (of its own, or of a limit of the system), or killed for its time, memory,
            processes or output.
        status: exit code; the negative number of the signal; None: killed, or lost (the system ended the sandbox).
        stdout, stderr: what it wrote, up to the limit.
        cpu_seconds: used by it and those it waited for.
    """

    ended: Ended = "signal"
    status: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.ended == "exit" and self.status == 0


@dataclass(frozen=True)
class Program:
    """A command with its files.

    Attributes:
        command: an absolute path and arguments.
        files: what stands in its folder, by plain name.
        stdin: its standard input.
        readable: more files and folders of the system that it may read.
    """

    command: Sequence[str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    readable: Sequence[str] = ()


def interpreter() -> tuple[str, list[str]]:
    """The Python behind this one, without virtual environment, and the folders that it needs."""
    path = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    folders = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix), os.path.dirname(path)}
    return path, sorted(folder for folder in folders if not f"{folder}/".startswith("/usr/") and folder != "/")


def python_program(arguments: Sequence[str], files: Mapping[str, bytes] | None = None, stdin: bytes = b"") -> Program:
    """Python with these arguments: no site packages but its own, no environment."""
    path, folders = interpreter()
    return Program([path, "-I", "-B", *arguments], files or {}, stdin, folders)


def run_program(
    program: Program, limits: Limits | None = None, *, weak: bool = False, cancelled: threading.Event | None = None
) -> Result:
    """Run a program in the sandbox and wait for its end.

    It may be called from any thread.

    Args:
        weak: without namespaces: the limits of the system, landlock and the filter of system calls alone.
        cancelled: when it is set the program is killed, as if its time were over.

    Raises:
        SandboxError: the system refuses namespaces.
    """
    limits = limits or Limits()
    if sys.platform != "linux":
        raise SandboxError("the sandbox needs Linux", fix="Run it in a Linux container or virtual machine")
    for name in program.files:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is no plain name of a file")
    cancelled = cancelled or threading.Event()
    if not weak:
        return _Run(program, limits, _kind(), "/work", cancelled).result()
    with tempfile.TemporaryDirectory(prefix="limbeck-sandbox-", ignore_cleanup_errors=True) as scratch:
        if os.geteuid() == 0 and _open_to_all(program.command[0]):
            os.chown(scratch, _NOBODY, _NOBODY)
        return _Run(program, limits, "weak", scratch, cancelled).result()


_found: list[Kind] = []


def _kind() -> Kind:
    """How programs are locked in here: by our own means, or by bwrap where only bwrap may. Raises SandboxError."""
    if not _found:
        nothing = python_program(["-S", "-c", "pass"])
        refusal: SandboxError | None = None
        kinds: list[Kind] = ["namespaces", "bwrap"] if shutil.which("bwrap") else ["namespaces"]
        for kind in kinds:
            try:
                if _Run(nothing, Limits(seconds=60), kind, "/work", threading.Event()).result().ok:
                    _found.append(kind)
                    break
            except SandboxError as error:
                refusal = refusal or error
        else:
            raise refusal or SandboxError("the sandbox for programs does not run Python", fix="Write `sandbox: weak`")
    return _found[0]


def _open_to_all(path: str) -> bool:
    """Whether every user may reach and run a file."""
    parents = Path(path).resolve().parents
    return os.stat(path).st_mode & 0o5 == 0o5 and all(folder.stat().st_mode & 0o1 for folder in parents)


class _Run:
    """One program, from its start to its end."""

    def __init__(self, program: Program, limits: Limits, kind: Kind, folder: str, cancelled: threading.Event) -> None:
        self.program, self.limits, self.kind, self.folder = program, limits, kind, folder
        self.cancelled = cancelled
        self.outcome = Result()
        self.output: dict[int, bytearray] = {}
        self.killed: Ended | None = None
        self.refused: str | None = None
        self.started = self.ended = False
        self.watched = 0.0

    def result(self) -> Result:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                launcher = self._launch(theirs)
            try:
                ours.sendall(json.dumps(self._settings()).encode() + b"\n")
                self._serve(launcher, ours)
            except (BrokenPipeError, ConnectionResetError):
                self.refused = self.refused or "the launcher ended"
            finally:
                _kill_group(launcher)
        out, err = self.output.values() if self.output else (bytearray(), bytearray())
        self.outcome.stdout, self.outcome.stderr = bytes(out), bytes(err)
        if not self.started and self.killed is None:
            self.refused = self.refused or "the process that makes it ended"
        if self.refused is not None:
            raise SandboxError(
                f"the sandbox for programs cannot be made ({self.refused})",
                fix="Allow user namespaces, or write `sandbox: weak`",
            )
        if self.killed is not None:
            self.outcome.ended, self.outcome.status = self.killed, None
        return self.outcome

    def _launch(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        handle = theirs.fileno()
        root = _INSIDE if self.kind == "bwrap" else _ROOT
        command = [interpreter()[0], "-I", "-S", "-B", "-c", _LAUNCH.format(root=root, handle=handle)]
        if self.kind == "bwrap":
            command = [*bwrap_arguments(self.program, self.limits), *command]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(handle,),
            start_new_session=True,
            env={},
            cwd="/",
        )

    def _settings(self) -> dict[str, Any]:
        limits, folder = self.limits, self.folder
        drops = self.kind == "namespaces" or (self.kind == "weak" and _open_to_all(self.program.command[0]))
        return {
            "kind": self.kind,
            "command": list(self.program.command),
            "contents": {name: binascii.b2a_base64(plain).decode() for name, plain in self.program.files.items()},
            "readable": list(self.program.readable),
            "folder": folder,
            "environment": {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            "uid": _NOBODY if drops else None,
            "cpu_seconds": limits.cpu_seconds,
            "memory_mb": limits.memory_mb,
            "disk_mb": limits.disk_mb,
            "files": limits.files,
            "processes": limits.processes,
            "open_files": limits.open_files,
        }

    def _serve(self, launcher: subprocess.Popen[bytes], control: socket.socket) -> None:
        """Feed the program, read what it writes, and kill it where it goes too far, until all its pipes are closed."""
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        assert launcher.stderr is not None
        stdin = launcher.stdin.fileno()
        self.output = {launcher.stdout.fileno(): bytearray(), launcher.stderr.fileno(): bytearray()}
        rest = memoryview(self.program.stdin)
        deadline = time.monotonic() + _STARTING_SECONDS
        lines = bytearray()
        with selectors.DefaultSelector() as selector:
            for handle in (*self.output, control.fileno()):
                os.set_blocking(handle, False)
                selector.register(handle, selectors.EVENT_READ)
            os.set_blocking(stdin, False)
            selector.register(stdin, selectors.EVENT_WRITE)
            while selector.get_map():
                for key, _ in selector.select(_WATCH_SECONDS):
                    if key.fd == stdin:
                        rest = self._feed(rest, stdin)
                        if not rest:
                            selector.unregister(stdin)
                            _close(launcher.stdin)
                    elif key.fd in self.output:
                        if not self._drain(key.fd):
                            selector.unregister(key.fd)
                    else:
                        part = _read(key.fd)
                        if part == b"":
                            selector.unregister(key.fd)
                        lines += part or b""
                        while b"\n" in lines:
                            line, _, lines = lines.partition(b"\n")
                            if self._heard(json.loads(line), launcher, control):
                                deadline = time.monotonic() + self.limits.seconds
                self._watch(launcher, deadline)
                if self.killed is not None or self.refused is not None:
                    return
                if self.ended and stdin in selector.get_map():
                    selector.unregister(stdin)
                if self.ended and time.monotonic() > deadline + _GRACE_SECONDS:
                    return

    def _watch(self, launcher: subprocess.Popen[bytes], deadline: float) -> None:
        if self.ended or self.killed is not None:
            return
        if time.monotonic() < self.watched + _WATCH_SECONDS:
            return
        self.watched = time.monotonic()
        below = _descendants(launcher.pid)[_OURS[self.kind] :]
        if time.monotonic() > deadline or self.cancelled.is_set():
            self.killed = "time"
        elif len(below) > self.limits.processes + 2:  # root is not held by the system's limit
            self.killed = "processes"
        elif self._memory(below) > self.limits.memory_mb << 20:
            self.killed = "memory"

    def _heard(self, message: dict[str, Any], launcher: subprocess.Popen[bytes], control: socket.socket) -> bool:
        """Act on a message of the launcher. True: the program has started."""
        event = message["event"]
        if event == "unshared":
            try:
                _map_users(launcher.pid)
            except OSError as error:
                self.refused = f"user map: {error.strerror}"
                return False
            control.setblocking(True)
            control.sendall(b"0\n")
            control.setblocking(False)
        elif event == "refused":
            self.refused = message["what"]
        elif event == "started":
            self.started = True
        elif event == "ended":
            self.ended = True
            status = message["status"]
            self.outcome.ended = "exit" if status >= 0 else "signal"
            self.outcome.status, self.outcome.cpu_seconds = status, message["cpu"]
        return bool(event == "started")

    def _feed(self, rest: memoryview, handle: int) -> memoryview:
        try:
            return rest[os.write(handle, rest[: 1 << 16]) :]
        except BlockingIOError:
            return rest
        except BrokenPipeError:
            return rest[:0]

    def _drain(self, handle: int) -> bool:
        """Read what was written. False: there is no more."""
        part = _read(handle)
        if part is None:
            return True
        kept = self.output[handle]
        kept += part[: self.limits.output_bytes - len(kept)]
        if len(part) and len(kept) >= self.limits.output_bytes:
            self.killed = self.killed or "output"
        return bool(part)

    def _memory(self, processes: list[int]) -> int:
        """What they hold, in bytes; what they share counts once."""
        rough = sum(_private_pages(pid) for pid in processes) * os.sysconf("SC_PAGE_SIZE")
        if rough <= self.limits.memory_mb << 20:
            return rough
        return sum(_proportional(pid) for pid in processes)


def bwrap_arguments(program: Program, limits: Limits) -> list[str]:
    """The same root and namespaces, made by bwrap. The number of files is not limited, only their size."""
    bwrap = shutil.which("bwrap") or "bwrap"
    arguments = [bwrap, "--unshare-all", "--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    arguments += ["--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            arguments += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        else:
            arguments += ["--ro-bind-try", f"/{name}", f"/{name}"]
    for path in ("/etc/ld.so.cache", *dict.fromkeys([*interpreter()[1], *program.readable])):
        arguments += ["--ro-bind-try", path, path]
    package = f"{_INSIDE}/limbeck/generation/sandbox"
    size = str((limits.disk_mb << 20) // 3)  # each of three
    arguments += ["--ro-bind", str(_PACKAGE), package, "--dev", "/dev"]
    for folder in ("/work", "/tmp", "/dev/shm"):
        arguments += ["--size", size, "--tmpfs", folder]
    return [*arguments, "--remount-ro", "/", "--chdir", "/", "--clearenv", "--"]


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what was not flushed cannot be written any more
        pipe.close()


def _read(handle: int) -> bytes | None:
    """None: nothing yet; empty: closed."""
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _map_users(pid: int) -> None:
    """Root inside is root outside, for the making of the root; the program is nobody. Other users are nobody inside."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        try:
            for name in ("uid_map", "gid_map"):
                _write_map(pid, name, f"0 0 1\n{_NOBODY} {_NOBODY} 1\n")
            return
        except PermissionError:
            pass  # root of a container that has no other user
    _write_map(pid, "setgroups", "deny")
    _write_map(pid, "uid_map", f"{_NOBODY} {user} 1\n")
    _write_map(pid, "gid_map", f"{_NOBODY} {group} 1\n")


def _write_map(pid: int, name: str, text: str) -> None:
    with open(f"/proc/{pid}/{name}", "w") as file:
        file.write(text)


def _descendants(pid: int) -> list[int]:
    """All processes below one, parents before children."""
    found = _children(pid)
    for child in found:
        found += _children(child)  # the list grows while it is read
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it has ended
    return found


def _private_pages(pid: int) -> int:
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return int(resident) - int(shared)


def _proportional(pid: int) -> int:
    """Memory of a process, with its part of what it shares."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return _private_pages(pid) * os.sysconf("SC_PAGE_SIZE")


def _kill_group(launcher: subprocess.Popen[bytes]) -> None:
    """End the launcher and all that it started. What has left its group is below it: it adopts orphans."""
    for number in (signal.SIGSTOP, *[signal.SIGKILL] * 100):
        below = _descendants(launcher.pid)
        if not below:
            break
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    for pipe in (launcher.stdin, launcher.stdout, launcher.stderr):
        if pipe is not None:
            _close(pipe)


def available() -> str:
    """Which sandbox holds here, in words; an empty string: none does."""
    if sys.platform != "linux":
        return ""
    from limbeck.generation.sandbox.syscalls import landlock_version

    try:
        made = "namespaces" if _kind() == "namespaces" else "bwrap"
    except SandboxError:
        return ""
    version = landlock_version()
    return f"{made}, seccomp" + (f", landlock {version}" if version else "")
