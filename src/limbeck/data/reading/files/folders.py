"""Which files a recipe means: of a path, a pattern, a folder, or a list of these."""

from __future__ import annotations

import glob
import json
import mimetypes
import os
import re
from collections.abc import Sequence
from pathlib import Path

from limbeck.data.reading.containers import SUFFIXES, Container, File, recognise, suffix
from limbeck.data.reading.files.copies import left_out
from limbeck.data.reading.files.notices import Notices
from limbeck.data.reading.files.shards import missing_shard
from limbeck.data.reading.files.splits import Splits, splits_of
from limbeck.errors import InputError, RecipeError

_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that lie beside data and are none."""
_PROSE_ABOUT = ("README", "LICENSE", "CHANGELOG")
_LEFT = re.compile(
    r"(\.(bak|old|orig|tmp|temp|swp|part|partial|incomplete|crdownload|lock)|~)$|^#.*#$|^~\$", re.IGNORECASE
)
"""Names of copies and of what was not written to its end, of files and of folders."""
_TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}")
"""Files of Python's ``tempfile``: caches of `datasets` while they are written."""
_OTHER = (
    ".rst", ".py", ".ipynb", ".js", ".css", ".sh", ".tex", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".cfg",
    ".ini",
)  # fmt: skip
_OTHER_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
_TYPES = mimetypes.MimeTypes()  # without the system's, which differ


def files_of(named: str | tuple[str, ...], key: str, notices: Notices | None = None) -> list[Path]:
    """Files of a path, a pattern, a folder, or a list of these, sorted within each.

    Of a folder they are the tables in it, at any depth; or its texts, where it holds no table.

    Args:
        notices: filled with other files of a folder, and with what may not be meant.

    Raises:
        RecipeError: there is nothing, a link that leads nowhere, or a folder whose files should not be mixed.
    """
    notices = notices if notices is not None else Notices()
    found: dict[Path, Path] = {}
    for one in (named,) if isinstance(named, str) else named:
        path = Path(one).expanduser()
        if path.is_dir():
            inside = _inside(path, key, notices)
        elif path.exists():
            inside = [path]
        elif "://" in one:
            raise RecipeError(f"{one} is a URL", key=key, fix="Download it; a data set of the hub is `dataset:`")
        else:
            inside = matching(one, sorted(map(Path, glob.glob(str(path), recursive=True))), key, notices)
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


def matching(pattern: str, found: Sequence[Path], key: str, notices: Notices) -> list[Path]:
    """The files among what a pattern matches."""
    for path in found:
        _refuse_dangling(path, key)
    files = [path for path in found if path.is_file()]
    root = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    if copies := sorted(left_out(root, files)[0]):
        notices.doubt(f"{pattern} reads {copies[0].name} beside what it is named as a copy of")
    if (lacking := missing_shard(files)) is not None:
        missing, there, total = lacking
        notices.doubt(f"{pattern} reads {there:,} of {total:,} files of a set: there is no {missing}")
    return files


def _refuse_dangling(path: Path, key: str) -> None:
    if path.is_symlink() and not path.exists():
        raise RecipeError(
            f"{path} is a link to {os.readlink(path)}, which is not there",
            key=key,
            fix="Copy or download it again, or remove the link",
        )


def files_below(folder: Path, key: str, notices: Notices) -> list[Path]:
    """All files of a folder, sorted, but hidden ones and those that say something of the data and hold none.

    Raises:
        RecipeError: a link leads nowhere.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        about = path.stem.upper() in _PROSE_ABOUT and SUFFIXES.get(suffix(path), "text") == "text"
        if not hidden and not set_aside(path, folder):
            _refuse_dangling(path, key)
        if path.is_dir():
            if path.is_symlink() and not hidden:  # what is below it is not listed
                notices.unread.add(f"{inside}{os.sep}")
        elif hidden or about or not path.is_file():
            notices.unread.add(str(inside))
        elif path.name not in _ABOUT:
            found.append(path)
    return found


def set_aside(path: Path, folder: Path) -> bool:
    """Whether a name below a folder says that it is no data: hidden, begun with an underscore (``_temporary/``), or
    named as a copy or as unfinished."""
    parts = path.relative_to(folder).parts
    return bool(_TEMPORARY.fullmatch(path.name)) or any(p.startswith((".", "_")) or _LEFT.search(p) for p in parts)


def chosen(folder: Path, files: Sequence[Path], key: str, notices: Notices) -> list[Path]:
    """Files of a folder without copies of others.

    Raises:
        RecipeError: a set of files lacks one.
    """
    copies, alone = left_out(folder, files)
    if alone:
        notices.doubt(f"{alone[0]} is named as a copy of what is not beside it, and is read")
    files = [file for file in files if file not in copies]
    notices.copies.update(str(file.relative_to(folder)) for file in copies)
    if (lacking := missing_shard(files)) is not None:
        missing, there, total = lacking
        raise RecipeError(
            f"{folder} holds {there:,} of {total:,} files of a set: there is no {missing.relative_to(folder)}",
            key=key,
            fix="Copy or download it again; or name those that should be read, or a pattern",
        )
    return files


def _inside(folder: Path, key: str, notices: Notices) -> list[Path]:
    if (folder / "dataset_dict.json").exists():
        names = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()))
        raise RecipeError(
            f"{folder} holds a data set of several splits ({names})",
            key=key,
            fix=f"Name the folder of one: {folder}/...",
        )
    found = files_below(folder, key, notices)
    saved = {parent: _saved(parent, key) for parent in {p.parent for p in found}}
    kinds = {path: None if set_aside(path, folder) else _kind(path, key, saved[path.parent]) for path in found}
    tables = [path for path, kind in kinds.items() if kind not in (None, "text")]
    texts = [path for path, kind in kinds.items() if kind == "text"]
    if not tables and not texts:
        raise RecipeError(
            f"{folder} is a folder without files that limbeck reads", key=key, fix=f"It reads {', '.join(SUFFIXES)}"
        )
    used = chosen(folder, tables or texts, key, notices)
    if (splits := splits_of(folder, used, texts=not tables)) is not None:
        one = _pattern(folder, splits.named.get("train") or splits.others or next(iter(splits.named.values())), used)
        ending = os.path.commonprefix([file.suffixes[::-1] for file in used])  # noqa: RUF071 - of lists
        every = f"{folder}/**/*{''.join(ending[::-1])}" if ending else f"[{used[0]}, ...]"
        fix = f"Name one, `files: {one}`; or what should be mixed, `files: {every}`"
        check_splits(folder, splits, key, fix, notices)
    notices.unread.update(str(path.relative_to(folder)) for path in {*found} - {*used})
    return used


def _kind(path: Path, key: str, saved: set[str] | None) -> Container | None:
    """What a file of a folder is: a known name says it, of another the content. None: it is not read."""
    if saved is not None and suffix(path) == ".arrow":  # others are caches of the `datasets` library
        return "Arrow file" if path.name in saved else None
    if path.name.startswith("cache-") and suffix(path) == ".arrow":
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


def check_splits(folder: Path, splits: Splits, key: str, fix: str, notices: Notices) -> None:
    """What is held out elsewhere should not be trained on because a folder was named.

    Raises:
        RecipeError: the folder holds several splits, or one that is not to be learned beside other files.
    """
    names = ", ".join(sorted(splits.named))
    beside = f"a split ({names}) beside other files ({splits.others[0].name}, ...)" if splits.others else ""
    what = f"several splits ({names})" if len(splits.named) > 1 else beside
    if not splits.mixed:
        held_out = next(iter(splits.named.values()))
        notices.doubt(f"{folder} may hold {what}: {held_out[0].relative_to(folder)} is read")
        return
    raise RecipeError(f"{folder} holds {what}, which should not be mixed", key=key, fix=fix)


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
