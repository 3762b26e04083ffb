"""Where documents come from: text, JSON lines, Parquet, a hub data set, Python's own library.

A document is read, hashed and handed on one at a time.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck.data.document import MESSAGE_FIELDS, Document
from limbeck.errors import InputError, RecipeError
from limbeck.recipe import HubSource, JsonlSource, ParquetSource, Source, StdlibSource, TextSource


@dataclass
class LeftOut:
    """Conversations in which nobody called ``assistant`` says anything: nothing can be learned from them."""

    count: int = 0
    roles: set[str] = field(default_factory=set)

    def line(self) -> str:
        roles = ", ".join(sorted(self.roles)[:5])
        return f"{self.count:,} of its conversations hold no words of an `assistant` (roles: {roles})"


def documents(sources: tuple[Source, ...], left_out: dict[str, LeftOut] | None = None) -> Iterator[Document]:
    """All documents of a corpus, in the order of the files; empty ones are left out.

    Args:
        left_out: by the source's key in the recipe, conversations that were left out; filled.

    Raises:
        RecipeError, InputError: a source is missing, unreadable, or holds no document.
    """
    for number, source in enumerate(sources):
        key = f"data.corpus.{number}"
        found, silent = False, LeftOut()
        for document in islice(_read(source, key, silent), source.max_documents):
            found = True
            yield document
        if not found and silent.count:
            raise InputError(silent.line(), key=key, fix='Write "role": "assistant" where the model speaks')
        if not found:
            raise InputError("holds no document", key=key, fix="Check the path, the glob and the separator")
        if silent.count and left_out is not None:
            left_out[key] = silent


def check_sources(sources: tuple[Source, ...]) -> None:
    """Read the first document of every source that is on this machine.

    Raises:
        RecipeError, InputError: as ``documents``.
    """
    for number, source in enumerate(sources):
        if not isinstance(source, HubSource):
            next(_read(source, f"data.corpus.{number}", LeftOut()), None)


def file_stamps(sources: tuple[Source, ...]) -> dict[str, list[int]]:
    """Size and time of change of every file that is read: differing stamps say "look again"."""
    stamps = {}
    for source in sources:
        name = getattr(source, "text", None) or getattr(source, "jsonl", None) or getattr(source, "parquet", None)
        path = Path(name).expanduser() if name else None
        if path is not None and path.exists():
            files = sorted(path.glob(source.glob)) if isinstance(source, TextSource) and path.is_dir() else [path]
            for file in files:
                stat = file.stat()
                stamps[str(file.resolve())] = [stat.st_size, stat.st_mtime_ns]
    return stamps


def _read(source: Source, key: str, left_out: LeftOut) -> Iterator[Document]:
    match source:
        case TextSource():
            return _text(source, key)
        case JsonlSource():
            return _jsonl(source, key, left_out)
        case ParquetSource():
            return _parquet(source, key, left_out)
        case HubSource():
            return _hub(source, key, left_out)
        case StdlibSource():
            return _stdlib(source)


def _existing(path: str, key: str, *, folder: bool = False) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise RecipeError(f"there is no {path}", key=key, fix="Relative paths start at the current directory")
    if found.is_dir() and not folder:
        raise RecipeError(f"{path} is a folder", key=key, fix="Name a file")
    return found


def _read_text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start})",
            key=key,
            fix=f"Convert it: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", key=key, fix="Check its permissions") from None


def _text(source: TextSource, key: str) -> Iterator[Document]:
    path = _existing(source.text, f"{key}.text", folder=True)
    try:
        files = sorted(p for p in path.glob(source.glob) if p.is_file()) if path.is_dir() else [path]
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"{source.glob!r} is no pattern ({error})", key=f"{key}.glob", fix='Write "**/*.txt"'
        ) from None
    for file in files:
        whole = _read_text(file, f"{key}.text")
        for piece in whole.split(source.separator) if source.separator else [whole]:
            if piece.strip():
                yield Document(text=piece.strip("\n"))


def _jsonl(source: JsonlSource, key: str, left_out: LeftOut) -> Iterator[Document]:
    path = _existing(source.jsonl, f"{key}.jsonl")
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise InputError(
                            f"{path}, line {number} is not JSON ({getattr(error, 'msg', 'nested too deep')})",
                            key=f"{key}.jsonl",
                            fix="One object a line",
                        ) from None
                    yield from _row(row, source.field, f"{path}, line {number}", key, left_out)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start})", key=f"{key}.jsonl", fix="Convert it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", key=f"{key}.jsonl") from None


def _parquet(source: ParquetSource, key: str, left_out: LeftOut) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    path = _existing(source.parquet, f"{key}.parquet")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    yield from _row(row, source.field, str(path), key, left_out)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is not a whole Parquet file ({error})", key=f"{key}.parquet") from None


def _hub(source: HubSource, key: str, left_out: LeftOut) -> Iterator[Document]:
    import datasets

    try:
        rows = datasets.load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # the library raises many kinds: not found, offline, unknown split, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(
            f"{source.dataset} cannot be loaded ({reason[:200]})",
            key=f"{key}.dataset",
            fix="Check name, split and network",
        ) from None
    for row in rows:
        yield from _row(row, source.field, source.dataset, key, left_out)


def _row(row: Any, column: str, where: str, key: str, left_out: LeftOut) -> Iterator[Document]:
    """One document of a table's row: `messages`, or `prompt` and `response`, or plain text."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object", key=key, fix='Write {"text": "..."}')
    if isinstance(row.get("messages"), list):
        messages = tuple(
            {k: v for k, v in message.items() if k in MESSAGE_FIELDS and v is not None}
            for message in row["messages"]
            if isinstance(message, dict)
        )
        if any(not isinstance(m.get("content"), str) or not isinstance(m.get("role"), str) for m in messages):
            raise InputError(f"{where}: a message needs `role` and `content`, both strings", key=key)
        if any(m["role"] == "assistant" for m in messages):
            yield Document(messages=messages)
        else:
            left_out.count += 1
            left_out.roles.update(m["role"] for m in messages)
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str):
        if row["response"].strip():
            yield Document(
                messages=(
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["response"]},
                ),
                chat=False,
            )
    elif isinstance(row.get(column), str):
        if row[column].strip():
            yield Document(text=row[column])
    else:
        raise InputError(
            f"{where} has neither `{column}`, nor `messages`, nor `prompt` and `response` "
            f"(it has {', '.join(map(str, row)) or 'nothing'})",
            key=key,
            fix="Name the text's column with `field:`",
        )


def _stdlib(source: StdlibSource) -> Iterator[Document]:
    """Docstrings, whole sources, or questions and answers, of this Python's library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if skip & set(inside.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a few files carry other encodings on purpose
            continue
        if source.stdlib == "sources":
            if text.strip():
                yield Document(text=text)
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        yield from (_docstrings(tree) if source.stdlib == "docstrings" else _questions(tree, module))


def _docstrings(tree: ast.Module) -> Iterator[Document]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc and len(doc) >= 40:
                yield Document(text=doc)


def _questions(node: ast.AST, name: str) -> Iterator[Document]:
    """What a public name is or does, and the first paragraph of its docstring as the answer."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(doc) >= 20 and doc[0].isupper():
            match node:
                case ast.Module():
                    question = f"What is the Python module `{name}` for?"
                case ast.ClassDef():
                    question = f"What is `{name}` in Python?"
                case _:
                    question = f"What does `{name}` do in Python?"
            yield Document(messages=({"role": "user", "content": question}, {"role": "assistant", "content": doc}))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in node.body:
                called = getattr(child, "name", "_")
                if not called.startswith("_"):
                    yield from _questions(child, f"{name}.{called}")
