"""Where and with what a run was made: versions, machine, commit. Never keys, never the environment."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from limbeck.runtime.world import device_count, device_name


def versions() -> dict[str, str]:
    names = ("limbeck", "torch", "transformers", "tokenizers", "safetensors", "peft", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def machine() -> dict[str, str]:
    facts = {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu(), "cores": str(os.cpu_count())}
    if (name := device_name()) is not None:
        facts["gpu"] = f"{device_count()} × {name}"
    return facts


def command() -> str:
    """The command line, without its folder."""
    name = Path(sys.argv[0]).name
    return " ".join(["python -m limbeck" if name == "__main__.py" else name, *sys.argv[1:]])


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
