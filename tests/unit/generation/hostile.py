"""Programs that try to do harm, and what must come of them. As a script it tries them all and prints what escaped."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from limbeck.generation.sandbox.programs import Limits, Result, python_program, run_program

LIMITS = Limits(seconds=3, cpu_seconds=1, memory_mb=200, disk_mb=16, files=500, processes=16, output_bytes=100_000)

TRY = """
import ctypes, errno, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result, ctypes.get_errno()
def harm(what):
    print("ESCAPED", what, flush=True)
def refused(what, function, *arguments):
    try:
        function(*arguments)
    except (OSError, ValueError) as error:
        return error
    harm(what)
"""


class Hostile(NamedTuple):
    """A program, and how it must end (``exit``: it finds out itself that it can do nothing)."""

    name: str
    code: str
    ends: tuple[str, ...] = ("exit",)


PROGRAMS = [
    Hostile("fork bomb", "while True:\n    try: os.fork()\n    except OSError: pass", ("time", "signal", "processes")),
    Hostile("many processes", """
children = 0
try:
    for _ in range(1000):
        if os.fork() == 0: time.sleep(60)
        children += 1
except OSError: pass
if children > 40: harm(children)
""", ("exit", "processes")),
    Hostile("memory", "refused('memory', lambda: bytearray(1 << 30)) if 0 else None\n"
            "try: bytearray(1 << 30); harm('1 GB')\nexcept MemoryError: pass"),
    Hostile("memory of many processes", """
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20)) * 80; time.sleep(60)
time.sleep(60)
""", ("memory",)),
    Hostile("memory that no process maps", """
refused("memfd", os.memfd_create, "x")
if call(29, 0, 1 << 30, 0o1600)[0] >= 0: harm("shmget")
"""),
    Hostile("fills the disk", """
written = 0
try:
    for i in range(100):
        with open(f"/work/{i}", "wb") as file: written += file.write(bytes(1 << 20)); file.flush()
    harm("disk")
except OSError: pass
try:
    with open("/tmp/x", "wb") as file: file.write(bytes(8 << 20)); file.flush(); harm("another disk")
except OSError: pass
"""),
    Hostile("10,000 files", """
made = 0
try:
    for made in range(10_000): open(f"/tmp/f{made}", "w").close()
    harm("files")
except OSError: pass
if made > 600: harm(made)
"""),
    Hostile("endless loop", "while True: pass", ("signal", "time")),
    Hostile("endless loop that ignores signals", """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""", ("signal", "time")),
    Hostile("sleeps", "time.sleep(3600)", ("time",)),
    Hostile("endless output", "while True: print('x' * 1000)", ("output",)),
    Hostile("reads the host", """
for path in ("/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/environ", "/sys/kernel", "@SECRET@",
             os.path.dirname("@SECRET@"), "/home", "/var", "/dev/vda", "/dev/mem", "/dev/kmsg"):
    refused(path, os.stat, path)
if len(os.environ) > 5: harm(os.environ)
"""),
    Hostile("writes to the host", """
for path in ("/x", "/usr/x", "/usr/bin/x", "/etc/ld.so.cache", "/dev/x", "/bin/x", sys.executable, os.__file__,
             os.path.join(sys.base_prefix, "x")):
    refused(path, open, path, "ab")
    refused(path, os.remove, path)
    refused(path, os.chmod, path, 0o777)
"""),
    Hostile("opens the network", """
for family, address in ((socket.AF_INET, ("127.0.0.1", @PORT@)), (socket.AF_INET, ("1.1.1.1", 53)),
                        (socket.AF_INET6, ("::1", @PORT@))):
    with socket.socket(family) as tcp: refused(address, tcp.connect, address)
    if address[1] == 53:
        with socket.socket(family, socket.SOCK_DGRAM) as udp: refused(address, udp.sendto, b"x", address)
for family in (16, 17, 38, 40):
    refused(family, socket.socket, family, socket.SOCK_DGRAM)
    refused(family, socket.socket, family, socket.SOCK_STREAM)
with socket.socket(socket.AF_UNIX) as unix: refused("abstract", unix.connect, b"\\0@ABSTRACT@")
refused("interfaces", lambda: [harm(n) for n in socket.if_nameindex() if n[1] != "lo"] and None or open("/none"))
"""),
    Hostile("kills others", """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for number in (signal.SIGTERM, signal.SIGKILL):
    for pid in (1, @PARENT@):
        try: os.kill(pid, number)
        except OSError: pass
print("alive")
"""),
    Hostile("kills all", "try: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass"),
    Hostile("leaves a daemon", """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for handle in (0, 1, 2): os.close(handle)
        while True: time.sleep(1)
"""),
    Hostile("leaves a daemon that holds the pipes", "if os.fork() == 0:\n    os.setsid(); time.sleep(3600)"),
    Hostile("nested namespaces", """
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
    if libc.unshare(flag) == 0: harm(("unshare", hex(flag)))
    result, error = call(56, flag | 17, 0, 0, 0, 0)
    if result == 0: os._exit(0)
    if result > 0 and flag != 0x80: harm(("clone", hex(flag)))
if call(435, bytes(88), 88)[0] >= 0: harm("clone3")
refused("unshare", lambda: subprocess.run(["/usr/bin/unshare", "-Ur", "true"], check=True)) if 0 else None
if os.path.exists("/usr/bin/unshare") and subprocess.run(["/usr/bin/unshare", "-U", "/bin/true"],
        stderr=subprocess.DEVNULL).returncode == 0: harm("unshare -U")
"""),
    Hostile("mounts and changes the root", """
os.mkdir("/work/m")
if libc.mount(b"tmpfs", b"/work/m", b"tmpfs", 0, None) == 0: harm("mount")
if libc.mount(b"none", b"/", None, 0x20 | 0x1000, None) == 0: harm("remount")
if libc.umount2(b"/work", 2) == 0: harm("umount")
refused("chroot", os.chroot, "/work")
for number in (428, 429, 430, 442):
    if call(number, -100, b"/", 0, 0, 0)[0] >= 0: harm(number)
"""),
    Hostile("traces the first process", """
if call(101, 16, 1, 0, 0)[0] >= 0: harm("attach")
if call(101, 0x4206, os.getppid(), 0, 0)[0] >= 0: harm("seize")
buffer = ctypes.create_string_buffer(64)
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 64)
if call(310, 1, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0)[0] >= 0: harm("process_vm_readv")
"""),
    Hostile("becomes root", """
for function in (os.setuid, os.setgid, os.seteuid): refused(function, function, 0)
refused("groups", os.setgroups, [0])
if os.getuid() == 0 or os.geteuid() == 0: harm("root")
for name in ("su", "sudo", "mount", "passwd"):
    path = f"/usr/bin/{name}"
    if os.path.exists(path):
        out = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True)
with open("/work/suid", "w") as file: file.write("#!/bin/sh\\nid -u")
os.chmod("/work/suid", 0o4755)
if b"0\\n" == subprocess.run(["/work/suid"], capture_output=True).stdout: harm("setuid")
"""),
    Hostile("makes devices", """
refused("mknod", os.mknod, "/work/disk", 0o60666, os.makedev(254, 0))
refused("mknod", os.mknod, "/work/mem", 0o20666, os.makedev(1, 1))
"""),
    Hostile("attacks the kernel", """
for number in (321, 298, 323, 425, 248, 250, 175, 313, 246, 304, 135, 169, 163, 500, 1000, 0x40000000 + 39):
    if call(number, 0, 0, 0, 0, 0)[0] >= 0: harm(number)
"""),
    Hostile("writes to a terminal", """
import fcntl
for handle in (0, 1, 2): refused("TIOCSTI", fcntl.ioctl, handle, 0x5412, b"x")
refused("tty", open, "/dev/tty", "w"); refused("console", open, "/dev/console", "w")
"""),
    Hostile("raises its limits", """
import resource
for name in ("AS", "NPROC", "CPU", "FSIZE", "NOFILE"):
    which = getattr(resource, f"RLIMIT_{name}")
    refused(which, resource.setrlimit, which, (1 << 40, 1 << 40))
"""),
    Hostile("finds what was left open", """
for handle in range(3, 1024):
    refused(handle, os.fstat, handle)
"""),
    Hostile("opens files without end", """
kept = []
try:
    while len(kept) < 100: kept.append(open("/dev/null"))
    harm("files")
except OSError: pass
"""),
    Hostile("links out of its folder", """
os.symlink("/etc", "/work/etc")
refused("link", os.stat, "/work/etc/passwd")
refused("hard link", os.link, sys.executable, "/work/python")
refused("up", os.stat, "/work/../../../../etc/passwd")
handle = os.open("/", os.O_RDONLY)
os.fchdir(handle); os.chdir("..")
if "work" not in os.listdir("."): harm(os.listdir("."))
"""),
    Hostile("floods standard error", "while True: os.write(2, b'x' * 65536)", ("output",)),
    Hostile("lies about its end", "os.kill(os.getpid(), signal.SIGSEGV)", ("signal",)),
]  # fmt: skip


def try_program(hostile: Hostile, secret: Path, port: int, abstract: str, limits: Limits = LIMITS) -> Result:
    code = TRY + hostile.code
    words = {"@SECRET@": secret, "@PORT@": port, "@ABSTRACT@": abstract, "@PARENT@": os.getpid()}
    for word, value in words.items():
        code = code.replace(word, str(value))
    marker = f"limbeck-hostile-{os.getpid()}"
    return run_program(python_program(["-c", code, marker]), limits)


def escapes(secret: Path) -> dict[str, str]:
    """What every program did that it should not have done, by name."""
    found: dict[str, str] = {}
    mounts = Path("/proc/self/mountinfo").read_text()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        abstract = f"limbeck-{os.getpid()}-{time.monotonic_ns()}"
        unix.bind(f"\0{abstract}")
        unix.listen()

        def attempt(hostile: Hostile) -> None:
            try:
                result = try_program(hostile, secret, server.getsockname()[1], abstract)
            except Exception as error:
                found[hostile.name] = repr(error)
                return
            if result.ended not in hostile.ends or b"ESCAPED" in result.stdout or b"Error" in result.stderr:
                found[hostile.name] = (
                    f"{result.ended} {result.status} {result.stdout[-500:]!r} {result.stderr[-500:]!r}"
                )
            if len(result.stdout) > LIMITS.output_bytes or len(result.stderr) > LIMITS.output_bytes:
                found[hostile.name] = "too much output"

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(attempt, PROGRAMS))
        for each in (server, unix):
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                found["network"] = str(each.accept())
    if left := left_running(f"limbeck-hostile-{os.getpid()}"):
        found["left in ps"] = str(left)
    if Path("/proc/self/mountinfo").read_text() != mounts:
        found["left in mount"] = Path("/proc/self/mountinfo").read_text()
    return found


def left_running(marker: str) -> list[int]:
    """Processes with this word in their command line; some time is given to those that are ending."""
    for _ in range(50):
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    print(json.dumps(escapes(Path(sys.argv[1]))))
