"""Sets of files that say how many they are: ``train-00000-of-00003.parquet``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

_SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<of>[-_]of[-_])(?P<total>\d+)(?P<after>.*)")


def missing_shard(files: Sequence[Path]) -> tuple[Path, int, int] | None:
    """The first file that a set lacks, how many of it are there, and of how many. None: the sets are whole."""
    sets: dict[tuple[Path, str, int, str, str], set[int]] = defaultdict(set)
    for file in files:
        if (found := _SHARD.fullmatch(file.name)) is not None:
            of = f"{found['of']}{found['total']}"
            sets[file.parent, found["before"], len(found["number"]), of, found["after"]].add(int(found["number"]))
    for (parent, before, width, ending, after), there in sets.items():
        total = int(ending[4:])
        first = 1 if 0 not in there and total in there else 0
        lacking = next((number for number in range(first, first + total) if number not in there), None)
        if lacking is not None:
            return parent / f"{before}{lacking:0{width}}{ending}{after}", len(there), total
    return None
