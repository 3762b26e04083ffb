"""The process that locks itself in and then runs a program; see ``programs``.

It is a fresh interpreter without site packages. With namespaces of its own making there are three processes: the
launcher, which makes them; the first process of the process namespace, which the program cannot signal, and whose end
ends all others; and the program itself.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

from limbeck.generation.sandbox import syscalls
from limbeck.generation.sandbox.calls import call_filter

NOBODY = 65534
WORK = "/work"
_LINKED = ("bin", "sbin", "lib", "lib32", "lib64")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_MEGABYTE = 1 << 20


class _Control:
    """Messages to the process that asked for the program: JSON, one a line."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        os.set_inheritable(handle, False)

    def send(self, **message: Any) -> None:
        plain = memoryview(json.dumps(message).encode() + b"\n")
        while plain:
            plain = plain[os.write(self.handle, plain) :]

    def receive(self) -> Any:
        line = bytearray()
        while not line.endswith(b"\n"):
            if not (part := os.read(self.handle, 1 << 16)):
                os._exit(1)  # nobody waits for the program any more
            line += part
        return json.loads(line)


def main(handle: int) -> None:
    """Run the program that is described by the first message on a socket."""
    control = _Control(handle)
    settings = control.receive()
    try:
        syscalls.die_with_parent()
        _be_killed_first()
        {"namespaces": _in_namespaces, "bwrap": _in_bwrap, "weak": _without_namespaces}[settings["kind"]](
            settings, control
        )
    except Exception as error:
        control.send(event="refused", what=str(error) or type(error).__name__)


def _be_killed_first() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


# ------------------------------------------------------------------ with namespaces


def _in_namespaces(settings: dict[str, Any], control: _Control) -> None:
    syscalls.unshare(
        syscalls.NEWUSER
        | syscalls.NEWNS
        | syscalls.NEWPID
        | syscalls.NEWNET
        | syscalls.NEWIPC
        | syscalls.NEWUTS
        | syscalls.NEWCGROUP
    )
    control.send(event="unshared")
    control.receive()  # the user map is written
    syscalls.set_host_name("sandbox")
    _make_root(settings)
    first = os.fork()
    if first == 0:
        _guarded(_first_process, settings, control)
    os.waitpid(first, 0)


def _guarded(run: Any, settings: dict[str, Any], control: _Control) -> NoReturn:
    """In a process that was forked: what is raised goes to the asking process, and the process ends."""
    try:
        run(settings, control)
    except BaseException as error:
        with contextlib.suppress(OSError):
            control.send(event="refused", what=str(error) or type(error).__name__)
        os._exit(127)
    os._exit(0)


def _make_root(settings: dict[str, Any]) -> None:
    """A root in memory: read-only, but for a folder of limited size."""
    base = next(path for path in ("/tmp", "/var/tmp", "/run", "/mnt") if os.path.isdir(path))
    syscalls.mount("none", "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    hidden = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", base, "tmpfs", hidden, "size=1m,mode=755")
    os.mkdir(f"{base}/old")
    os.mkdir(f"{base}/new")
    syscalls.pivot_root(base, f"{base}/old")
    os.chdir("/")
    syscalls.mount("tmpfs", "/new", "tmpfs", hidden, "size=4m,nr_inodes=4096,mode=755")
    _bind("/usr")
    for name in _LINKED:
        if os.path.islink(f"/old/{name}"):
            os.symlink(os.readlink(f"/old/{name}"), f"/new/{name}")
        else:
            _bind(f"/{name}")
    for path in ("/etc/ld.so.cache", *settings["readable"]):
        _bind(path)
    os.makedirs("/new/dev/shm")
    for name in _DEVICES:
        open(f"/new/dev/{name}", "w").close()
        syscalls.mount(f"/old/dev/{name}", f"/new/dev/{name}", None, syscalls.MS_BIND)
    limits = f"size={settings['disk_mb']}m,nr_inodes={settings['files']},mode=700,uid={NOBODY},gid={NOBODY}"
    os.mkdir(f"/new{WORK}")
    syscalls.mount("tmpfs", f"/new{WORK}", "tmpfs", hidden, limits)
    os.mkdir("/new/tmp")
    for path in ("/tmp", "/dev/shm"):  # one limit for all three
        inside = f"/new{WORK}/.{os.path.basename(path)}"
        os.mkdir(inside)
        os.chmod(inside, 0o1777)
        syscalls.mount(inside, f"/new{path}", None, syscalls.MS_BIND)
    _write_files(settings, f"/new{WORK}")
    syscalls.set_mount_attributes("/new", syscalls.ATTR_RDONLY, recursive=False)
    syscalls.pivot_root("/new", f"/new{WORK}")
    os.chdir("/")
    syscalls.detach(WORK)


def _bind(path: str) -> None:
    """A file or folder of the system, read-only, under the same path; nothing where it is absent."""
    source, target = f"/old{path}", f"/new{path}"
    if not os.path.lexists(source) or os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        open(target, "w").close()
    syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
    attributes = syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NODEV
    syscalls.set_mount_attributes(target, attributes, recursive=True)


def _write_files(settings: dict[str, Any], folder: str) -> None:
    for name, plain in settings["contents"].items():
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(binascii.a2b_base64(plain))
        os.chmod(path, 0o644)


def _first_process(settings: dict[str, Any], control: _Control) -> None:
    syscalls.die_with_parent()
    syscalls.hide_from_tracers()
    for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(each, signal.SIG_DFL)  # a first process is not reached by signals that it does not handle
    _run(settings, control, ["/"], [WORK, "/tmp", "/dev/shm", *(f"/dev/{name}" for name in _DEVICES)])


def _run(settings: dict[str, Any], control: _Control, readable: list[str], writable: list[str]) -> None:
    """Start the program, reap its orphans, and report its end. All others end with this process."""
    program = os.fork()
    if program == 0:
        _guarded(lambda *_: _become(settings, control, readable, writable), settings, control)
    control.send(event="started", pid=program)
    while True:
        ended, status = os.wait()
        if ended == program:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    control.send(event="ended", status=os.waitstatus_to_exitcode(status), cpu=used.ru_utime + used.ru_stime)


def _become(settings: dict[str, Any], control: _Control, readable: list[str], writable: list[str]) -> None:
    """Give up all rights, and become the program."""
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(settings["folder"])
    os.umask(0o077)
    for which, limit in _limits(settings):
        hard = resource.getrlimit(which)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))
    syscalls.drop_bounding_set()
    if settings["uid"] is not None and os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            os.setgroups([])
        os.setresgid(*[settings["uid"]] * 3)
        os.setresuid(*[settings["uid"]] * 3)
    syscalls.die_with_parent()  # a change of user clears it
    syscalls.drop_capabilities()
    syscalls.forbid_new_privileges()
    syscalls.restrict_paths(readable, writable)
    weak = settings["kind"] == "weak"
    blocked = call_filter(network=not weak, only_signal=os.getpid() if weak else None)
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    command, environment = settings["command"], settings["environment"]
    os.closerange(3, control.handle)
    os.closerange(control.handle + 1, max(highest, 4096))  # the control is closed by exec
    syscalls.install_filter(blocked)
    os.execve(command[0], command, environment)


def _limits(settings: dict[str, Any]) -> list[tuple[int, int]]:
    return [
        (resource.RLIMIT_CPU, settings["cpu_seconds"]),
        (resource.RLIMIT_AS, settings["memory_mb"] * _MEGABYTE),
        (resource.RLIMIT_FSIZE, settings["disk_mb"] * _MEGABYTE),
        (resource.RLIMIT_NOFILE, settings["open_files"]),
        # The launcher and the first process count too, where they are the same user.
        (resource.RLIMIT_NPROC, settings["processes"] + 2),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_CORE, 0),
    ]


def _in_bwrap(settings: dict[str, Any], control: _Control) -> None:
    """The namespaces and the root are made; the program shares its users with this process."""
    syscalls.hide_from_tracers()
    _write_files(settings, WORK)
    _run(settings, control, ["/"], [WORK, "/tmp", "/dev/shm", *(f"/dev/{name}" for name in _DEVICES)])


# ------------------------------------------------------------------ without


def _without_namespaces(settings: dict[str, Any], control: _Control) -> None:
    if os.geteuid() == 0 and settings["uid"] is None and not syscalls.landlock_version():
        raise OSError("root's programs cannot be kept from its files without namespaces and without landlock")
    syscalls.adopt_orphans()
    folder = settings["folder"]
    _write_files(settings, folder)
    system = ["/usr", "/etc/ld.so.cache", *(f"/{name}" for name in _LINKED), *settings["readable"]]
    try:
        _run(settings, control, system, [folder, *(f"/dev/{name}" for name in _DEVICES)])
    finally:
        _kill_descendants()


def _kill_descendants() -> None:
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
