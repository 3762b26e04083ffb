"""System calls that Python does not have, by ctypes. Imported by a process that is about to be locked in: only the
standard library, and as little of it as possible."""

from __future__ import annotations

import ctypes
import os
import struct

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NEWCGROUP = 0x2000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 0x2, 0x4, 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _SUBREAPER, _CAPBSET_DROP = 1, 4, 38, 36, 24
_SIGKILL = 9

MACHINES = {"x86_64": 0, "aarch64": 1}
"""Machines whose system calls are known, and their column in a table of them."""

_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PIVOT_ROOT = (155, 41)
_CAPSET = (126, 91)

_libc = ctypes.CDLL(None, use_errno=True)


def column() -> int:
    """The column of this machine in a table of system calls. Raises OSError on another machine."""
    try:
        return MACHINES[os.uname().machine]
    except KeyError:
        raise OSError(f"system calls of {os.uname().machine} are not known") from None


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    plain = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(number), *plain))


def unshare(flags: int) -> None:
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if each is None else os.fsencode(each) for each in (source, target, kind, options)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(f"mount {target}", result)


def set_mount_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    """Add attributes to a mount, and to those below it."""
    plain = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, plain, len(plain))


def detach(path: str) -> None:
    _checked(f"umount {path}", _libc.umount2(os.fsencode(path), _MNT_DETACH))


def pivot_root(new: str, old: str) -> None:
    _syscall("pivot_root", _PIVOT_ROOT[column()], os.fsencode(new), os.fsencode(old))


def set_host_name(name: str) -> None:
    plain = name.encode()
    _checked("sethostname", _libc.sethostname(plain, ctypes.c_size_t(len(plain))))


def _prctl(name: str, option: int, *arguments: object) -> None:
    plain = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    _checked(name, _libc.prctl(ctypes.c_int(option), *plain, *[ctypes.c_ulong(0)] * (4 - len(plain))))


def die_with_parent() -> None:
    _prctl("prctl", _PDEATHSIG, _SIGKILL)


def hide_from_tracers() -> None:
    """Nobody without privileges may trace this process or read its memory."""
    _prctl("prctl", _DUMPABLE, 0)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process."""
    _prctl("prctl", _SUBREAPER, 1)


def forbid_new_privileges() -> None:
    _prctl("no_new_privs", _NO_NEW_PRIVS, 1)


def drop_bounding_set() -> None:
    """No program that is run from here on can have capabilities."""
    for capability in range(64):
        try:
            _prctl("capbset", _CAPBSET_DROP, capability)
        except OSError:
            break  # the last one that this system knows was dropped, or none may be


def drop_capabilities() -> None:
    header = struct.pack("=II", 0x20080522, 0)
    _syscall("capset", _CAPSET[column()], header, bytes(24))


# ------------------------------------------------------------------ landlock

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_BASE = (1 << 13) - 1
_TCP = 0b11
_SCOPES = 0b11


def landlock_version() -> int:
    """0: this system has none."""
    try:
        return _syscall("landlock", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def restrict_paths(readable: list[str], writable: list[str]) -> None:
    """From here on nothing else may be read, run or written, no TCP port used, and no process outside be signalled.

    Paths that do not exist are left out; ``writable`` files and folders are readable, too. Where the system has no
    landlock nothing happens.
    """
    version = landlock_version()
    if not version:
        return
    handled = _BASE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    plain = struct.pack("=Q", handled | (_IOCTL_DEV if version >= 5 else 0))
    if version >= 4:
        plain += struct.pack("=Q", _TCP)
    if version >= 6:
        plain += struct.pack("=Q", _SCOPES)
    rules = _syscall("landlock", _LANDLOCK_CREATE, plain, len(plain), 0)
    everything = handled & ~(_MAKE_CHAR | _MAKE_BLOCK)
    for paths, allowed in ((readable, EXECUTE | READ_FILE | READ_DIR), (writable, everything)):
        for path in paths:
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            of_files = EXECUTE | READ_FILE | WRITE_FILE | (_TRUNCATE if version >= 3 else 0)
            granted = allowed if os.path.isdir(path) else allowed & of_files
            _syscall("landlock", _LANDLOCK_ADD, rules, 1, struct.pack("=Qi", granted, handle), 0)
            os.close(handle)
    _syscall("landlock", _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


# ------------------------------------------------------------------ seccomp


def install_filter(program: bytes) -> None:
    """A seccomp filter (instructions of 8 bytes) for this process and all that it starts."""
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    plain = Program(len(program) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    _prctl("seccomp", 22, 2, ctypes.byref(plain))
