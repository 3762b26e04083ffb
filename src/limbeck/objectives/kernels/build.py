"""Builds the C++ kernel on first use, once per machine, and says so once where it cannot.

The library is compiled into a temporary file and renamed into the cache, so any number of processes may
race to it and none ever sees half a file or waits for a lock that a killed process left. Its name carries
a hash of the sources, the compiler and the processor: a cache shared between machines is safe.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

SOURCES = ("rows.cpp", "blocks.h", "dense.h", "sparse.h", "terms.h", "divergences.h", "vectors.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
COMPILE_TIMEOUT_S = 300


class CannotBuildError(RuntimeError):
    """Why there is no C++ kernel."""


def disabled() -> bool:
    """Whether ``LIMBECK_CPU_KERNEL=0`` asks for plain torch."""
    return os.environ.get("LIMBECK_CPU_KERNEL", "1") == "0"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel, built if need be; ``None``, with one warning, where it cannot be had."""
    try:
        return _load()
    except (CannotBuildError, OSError) as error:
        warnings.warn(
            "limbeck: the C++ kernel of the objective is not available, so the same numbers come from plain "
            f"torch, slower. {error} (LIMBECK_CPU_KERNEL=0 silences this.)",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _load() -> ctypes.CDLL:
    compiler = find_compiler()
    path = cache_folder() / f"rows-{_fingerprint(compiler)}.so"
    if not path.exists():
        compile_to(path, compiler)
    return ctypes.CDLL(str(path))


def find_compiler() -> str:
    """``$CXX``, or the first C++ compiler on the path."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise CannotBuildError("No C++ compiler was found (c++, g++, clang++ or $CXX).")


def cache_folder() -> Path:
    """Where built kernels are kept: ``$LIMBECK_CACHE``, or ``limbeck`` in the user's cache folder."""
    home = os.environ.get("LIMBECK_CACHE")
    if home is None:
        base = os.environ.get("XDG_CACHE_HOME")
        home = str((Path(base) if base else Path.home() / ".cache") / "limbeck")
    folder = Path(home) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # Code is run from here, so nobody else may be able to write to it.
    return Path(tempfile.mkdtemp(prefix="limbeck-"))


def compile_to(path: Path, compiler: str) -> None:
    """Compile the kernel to ``path``, which appears whole or not at all."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        objects, built = Path(scratch) / "rows.o", Path(scratch) / "rows.so"
        _run([compiler, *FLAGS, "-fopenmp", "-c", str(here / SOURCES[0]), "-o", str(objects)])
        # Linked without OpenMP on purpose: its symbols are found in the runtime that torch has loaded, so
        # both share one pool of threads instead of two pools fighting for the cores.
        allow = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        _run([compiler, "-shared", *allow, str(objects), "-o", str(built)])
        built.replace(path)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"{command[0]} took more than {COMPILE_TIMEOUT_S} s.") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise CannotBuildError(f"{command[0]} failed: {lines[0].strip() if lines else done.returncode}.")


def _fingerprint(compiler: str) -> str:
    here, digest = Path(__file__).parent, hashlib.sha256()
    for name in SOURCES:
        digest.update((here / name).read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest.update("\0".join([*FLAGS, compiler, version, platform.machine(), _processor()]).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
