"""Which files a recipe means: of a path, a pattern, a folder, or a list of these."""

from __future__ import annotations

import glob
import json
import mimetypes
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from limbeck.data.reading.containers import SUFFIXES, Container, File, recognise, suffix
from limbeck.data.reading.splits import split_of
from limbeck.errors import InputError, RecipeError

_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that lie beside data and are none."""
_PROSE_ABOUT = ("README", "LICENSE", "CHANGELOG")
_LEFT = re.compile(r"(\.(bak|old|orig|tmp|temp|swp|part|partial|incomplete|crdownload|lock)|~)$", re.IGNORECASE)
"""Ends of names of copies and of what was not written to its end."""
_OTHER = (
    ".rst", ".py", ".ipynb", ".js", ".css", ".sh", ".tex", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".cfg",
    ".ini",
)  # fmt: skip
_OTHER_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
_TYPES = mimetypes.MimeTypes()  # without the system's, which differ


def files_of(named: str | tuple[str, ...], key: str, unread: set[str] | None = None) -> list[Path]:
    """Files of a path, a pattern, a folder, or a list of these, sorted within each.

    Of a folder they are the tables in it, at any depth; or its texts, where it holds no table.

    Args:
        unread: filled with the names of other files of a folder.

    Raises:
        RecipeError: there is nothing, or a folder whose files should not be mixed.
    """
    found: dict[Path, Path] = {}
    for one in (named,) if isinstance(named, str) else named:
        path = Path(one).expanduser()
        if path.is_dir():
            inside = _inside(path, key, unread)
        elif path.exists():
            inside = [path]
        elif "://" in one:
            raise RecipeError(f"{one} is a URL", key=key, fix="Download it; a data set of the hub is `dataset:`")
        else:
            inside = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
            if not inside:
                raise RecipeError(f"there is no {one}", key=key, fix="Relative paths start at the current directory")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def library_files(root: Path) -> list[Path]:
    """The files of Python's standard library, without its tests, sorted. Folders of other packages are not entered:
    there are many files in them."""
    found: list[Path] = []
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in _OTHER_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def beside(folder: Path) -> Iterator[Path]:
    """All files of a folder but hidden ones, and those that are known to say something of the data and to hold none."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        about = path.name in _ABOUT or path.stem.upper() in _PROSE_ABOUT
        if not hidden and not about and path.is_file():
            yield path


def set_aside(path: Path, folder: Path) -> bool:
    """Whether a name below a folder begins with a dot or an underscore: hidden, or unfinished (``_temporary/``)."""
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def _inside(folder: Path, key: str, unread: set[str] | None) -> list[Path]:
    if (folder / "dataset_dict.json").exists():
        splits = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()))
        raise RecipeError(
            f"{folder} holds a data set of several splits ({splits})",
            key=key,
            fix=f"Name the folder of one: {folder}/...",
        )
    found = sorted(beside(folder))
    saved = {parent: _saved(parent, key) for parent in {p.parent for p in found}}
    kinds = {path: None if set_aside(path, folder) else _kind(path, key, saved[path.parent]) for path in found}
    tables = [path for path, kind in kinds.items() if kind not in (None, "text")]
    texts = [path for path, kind in kinds.items() if kind == "text"]
    if not tables and not texts:
        raise RecipeError(
            f"{folder} is a folder without files that limbeck reads", key=key, fix=f"It reads {', '.join(SUFFIXES)}"
        )
    used = tables or texts
    if mixed := splits_of(folder, used):
        one = _pattern(folder, mixed.get("train") or next(iter(mixed.values())), used)
        ending = os.path.commonprefix([file.suffixes[::-1] for file in used])  # noqa: RUF071 - of lists
        every = f"{folder}/**/*{''.join(ending[::-1])}" if ending else f"[{used[0]}, ...]"
        refuse_splits(folder, mixed, key, f"Name one, `files: {one}`; or what should be mixed, `files: {every}`")
    if unread is not None:
        unread.update(str(path.relative_to(folder)) for path in {*found} - {*used})
    return used


def _kind(path: Path, key: str, saved: set[str] | None) -> Container | None:
    """What a file of a folder is: a known name says it, of another the content. None: it is not read."""
    if saved is not None and suffix(path) == ".arrow":  # others are caches of the `datasets` library
        return "Arrow file" if path.name in saved else None
    if path.name.startswith("cache-") and suffix(path) == ".arrow":
        return None
    if _LEFT.search(path.name):
        return None
    if suffix(path) in SUFFIXES:
        return SUFFIXES[suffix(path)]
    media = str(_TYPES.guess_type(path.name)[0]).startswith(("image/", "audio/", "video/", "font/"))
    if media or suffix(path) in _OTHER:
        return None
    try:
        found = recognise(File(path, key)).container
    except InputError:
        return None
    return found if found != "empty" else None


def _saved(folder: Path, key: str) -> set[str] | None:
    """Names of the files that a folder of ``Dataset.save_to_disk`` consists of; None for any other folder."""
    try:
        listed = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        names = {str(file["filename"]) for file in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    missing = sorted(name for name in names if not (folder / name).is_file())
    if len(missing) == len(names):  # another tool's file
        return None
    if missing:
        raise RecipeError(f"{folder} is torn: there is no {missing[0]}", key=key, fix="Copy or download it again")
    return names


def splits_of(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the split that they belong to, if there are several."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        split = split_of(file.relative_to(folder))
        if split is not None:
            splits.setdefault(split, []).append(file)
    return splits if len(splits) > 1 else {}


def refuse_splits(folder: Path, splits: Mapping[str, object], key: str, fix: str) -> NoReturn:
    """What is held out elsewhere should not be trained on because a folder was named."""
    raise RecipeError(
        f"{folder} holds several splits ({', '.join(sorted(splits))}), which should not be mixed", key=key, fix=fix
    )


def _pattern(folder: Path, chosen: Sequence[Path], files: Sequence[Path]) -> str:
    """A pattern of these files and of no others; a list of them where there is none as simple."""
    names = [str(path) for path in chosen]
    others = [str(path) for path in files if path not in chosen]
    shared = os.path.commonprefix(names)  # noqa: RUF071 - characters are meant
    if any(path.parent != chosen[0].parent for path in chosen):
        shared = f"{os.path.dirname(shared)}{os.sep}"
    if len(names) == 1:
        return names[0]
    if len(shared) > len(str(folder)) + 1 and not any(name.startswith(shared) for name in others):
        return shared.rstrip(os.sep) if shared.endswith(os.sep) else f"{shared}*"
    return f"[{names[0]}, {names[1]}, ...]"
