"""The filter of system calls: what a program has no reason to call is refused.

What is refused widens what a program could attack in the kernel (namespaces, mounts, tracing, bpf, io_uring), reaches
other machines past the network namespace (vsock), or holds memory that no limit counts (memfd, System V).
"""

from __future__ import annotations

import errno
import struct

from limbeck.generation.sandbox import syscalls

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161),
    "setdomainname": (171, 162), "init_module": (175, 105), "delete_module": (176, 106), "finit_module": (313, 273),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    "vhangup": (153, 58), "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "uselib": (134, None),
    "nfsservctl": (180, 42), "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "setpriority": (141, 140), "ioprio_set": (251, 30),
}  # fmt: skip
_ABSENT: dict[str, tuple[int, int]] = {
    "clone3": (435, 435), "memfd_create": (319, 279), "memfd_secret": (447, 447), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
"""As if the system did not have them: the C library then does without."""
_SIGNALS: dict[str, tuple[int, int]] = {
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}  # fmt: skip
_KILL, _TGKILL = (62, 129), (234, 131)
_CLONE, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (41, 198), (53, 199), (16, 29)
_FIRST_UNKNOWN = 457
_ARCHITECTURE = (0xC000003E, 0xC00000B7)
_NAMESPACES = (
    syscalls.NEWNS
    | syscalls.NEWUTS
    | syscalls.NEWIPC
    | syscalls.NEWUSER
    | syscalls.NEWPID
    | syscalls.NEWNET
    | syscalls.NEWCGROUP
)
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
"""Put characters into a terminal."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24
_ALLOW, _KILL_PROCESS, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


def _fail(number: int) -> bytes:
    return _step(_RETURN, _ERROR | number)


def _only(call: int, argument: int, allowed: tuple[int, ...], number: int) -> bytes:
    """``call`` fails unless its argument is one of those allowed."""
    body = _step(_LOAD, argument)
    body += b"".join(_step(_EQUAL, value, 0, 1) + _step(_RETURN, _ALLOW) for value in allowed) + _fail(number)
    return _step(_EQUAL, call, 0, len(body) // 8) + body


def call_filter(*, network: bool, only_signal: int | None = None) -> bytes:
    """The filter for this machine (see :func:`limbeck.generation.sandbox.syscalls.install_filter`).

    Args:
        network: internet sockets may be made; in a network namespace of its own they reach nothing.
        only_signal: the one process that may be signalled; None: all that can be seen.

    Raises:
        OSError: the machine's system calls are not known.
    """
    mine = syscalls.column()
    steps = [_step(_LOAD, _ARCH), _step(_EQUAL, _ARCHITECTURE[mine], 1, 0), _step(_RETURN, _KILL_PROCESS)]
    steps += [_step(_LOAD, _NUMBER), _step(_AT_LEAST, _FIRST_UNKNOWN, 0, 1), _fail(errno.ENOSYS)]
    for calls, number in ((_ABSENT, errno.ENOSYS), (_REFUSED, errno.EPERM)):
        for columns in calls.values():
            if (call := columns[mine]) is not None:
                steps += [_step(_EQUAL, call, 0, 1), _fail(number)]
    if only_signal is not None:
        for both in _SIGNALS.values():
            steps += [_step(_EQUAL, both[mine], 0, 1), _fail(errno.EPERM)]
        steps += [_only(call[mine], _FIRST, (only_signal,), errno.EPERM) for call in (_KILL, _TGKILL)]
    steps.append(_step(_EQUAL, _CLONE[mine], 0, 4) + _step(_LOAD, _FIRST) + _step(_ANY_BIT, _NAMESPACES, 0, 1))
    steps.append(_fail(errno.EPERM) + _step(_RETURN, _ALLOW))
    families = (_AF_UNIX, _AF_INET, _AF_INET6) if network else (_AF_UNIX,)
    steps += [_only(call[mine], _FIRST, families, errno.EAFNOSUPPORT) for call in (_SOCKET, _SOCKETPAIR)]
    steps.append(_step(_EQUAL, _IOCTL[mine], 0, 5) + _step(_LOAD, _SECOND))
    steps.append(_step(_EQUAL, _TIOCSTI, 1, 0) + _step(_EQUAL, _TIOCLINUX, 0, 1) + _fail(errno.EPERM))
    steps.append(_step(_RETURN, _ALLOW) + _step(_RETURN, _ALLOW))
    return b"".join(steps)
