"""Where documents come from: text, JSON lines, Parquet, a hub data set, Python's own library.

A document is read, hashed and handed on one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from limbeck.data.documents.document import Document
from limbeck.data.documents.messages.place import without_nulls
from limbeck.data.documents.rows import RowReader
from limbeck.data.documents.seen import UNLEARNED, Seen
from limbeck.data.reading.containers import Container, Rows
from limbeck.data.reading.files.folders import (
    check_splits,
    chosen,
    files_below,
    files_of,
    matching,
    set_aside,
)
from limbeck.data.reading.files.notices import Notices
from limbeck.data.reading.files.splits import splits_of
from limbeck.data.reading.readers import read_rows, read_text, require_separator
from limbeck.data.stdlib import of_stdlib
from limbeck.errors import InputError, RecipeError
from limbeck.recipe import FilesSource, HubSource, JsonlSource, ParquetSource, Source, StdlibSource, TextSource

NO_DOCUMENT = "Check the path, the glob and the separator"
ALL_TEXTS = TextSource.model_fields["glob"].default


def documents(
    sources: tuple[Source, ...],
    seen: dict[str, Seen] | None = None,
    place: str = "data.corpus",
    reader: type[RowReader] = RowReader,
) -> Iterator[Document]:
    """All documents of a corpus, in the order of the files; empty ones are left out.

    Args:
        seen: filled, by the source's key in the recipe, with what was recognised and left out there.
        place: of the sources in the recipe. ``reader``: makes documents of rows.

    Raises:
        RecipeError, InputError: a source is missing, unreadable, or holds no document.
    """
    for number, source in enumerate(sources):
        key = f"{place}.{number}"
        found, here = False, Seen()
        if seen is not None:
            seen[key] = here
        for document in islice(_read(source, key, here, reader), source.max_documents):
            found = True
            yield document
        if not found and here.silent:
            fix = 'Write "role": "assistant" where the model speaks; questions without answers go into `data.prompts`'
            raise InputError(str(here.left_out()), key=key, fix=None if UNLEARNED in here.roles else fix)
        if not found:
            raise InputError(_nothing(here), key=key, fix=NO_DOCUMENT)


def first_documents(
    sources: tuple[Source, ...], count: int, seen: dict[str, Seen] | None = None
) -> Iterator[tuple[str, Document]]:
    """The first documents of every source that is on this machine, with the source's key.

    A file is read as far as it takes: one without any document is read whole.

    Raises:
        RecipeError, InputError: as ``documents``.
    """
    for number, source in enumerate(sources):
        if not isinstance(source, HubSource):
            key = f"data.corpus.{number}"
            here = Seen()
            if seen is not None:
                seen[key] = here
            found = False
            for document in islice(_read(source, key, here), min(count, source.max_documents or count)):
                found = True
                yield key, document
            if not found and not here.silent:
                raise InputError(_nothing(here), key=key, fix=NO_DOCUMENT)


def _nothing(seen: Seen) -> str:
    left_out = seen.left_out()
    return f"holds no document: {left_out}" if left_out else "holds no document"


def named_files(source: Source, key: str, notices: Notices | None = None) -> list[Path]:
    """The files that a source reads; none for one that is no file. ``notices``: filled as by ``files_of``."""
    match source:
        case FilesSource(files=named):
            return files_of(named, f"{key}.files", notices)
        case JsonlSource(jsonl=named):
            return files_of(named, f"{key}.jsonl", notices)
        case ParquetSource(parquet=named):
            return files_of(named, f"{key}.parquet", notices)
        case TextSource():
            return _text_files(source, key, notices)
    return []


def file_stamps(sources: tuple[Source, ...], place: str = "data.corpus") -> dict[str, list[int]]:
    """Size and time of change of every file that is read: differing stamps say "look again"."""
    stamps = {}
    for number, source in enumerate(sources):
        try:
            files = named_files(source, f"{place}.{number}")
        except RecipeError:  # it is gone: no stamp
            continue
        for file in files:
            stat = file.stat()
            stamps[str(file.resolve())] = [stat.st_size, stat.st_mtime_ns]
    return stamps


def _read(source: Source, key: str, seen: Seen, reader: type[RowReader] = RowReader) -> Iterator[Document]:
    match source:
        case TextSource():
            return _counted(_text(source, key, seen), seen, "plain texts")
        case HubSource():
            return _table(lambda _: _hub(source, key), reader(key, source.columns, source.field, seen))
        case StdlibSource():
            return _counted(of_stdlib(source.stdlib), seen, f"of the standard library's {source.stdlib}")
        case FilesSource():
            return _table(_files(source, f"{key}.files", seen), reader(key, source.columns, source.field, seen))
        case JsonlSource():
            rows = _files(source, f"{key}.jsonl", seen, "json lines")
            return _table(rows, reader(key, source.columns, source.field, seen))
        case ParquetSource():
            rows = _files(source, f"{key}.parquet", seen, "Parquet")
            return _table(rows, reader(key, source.columns, source.field, seen))


def _counted(found: Iterator[Document], seen: Seen, kind: str) -> Iterator[Document]:
    for document in found:
        seen.kinds[kind] += 1
        yield document


def _table(rows: Callable[[RowReader], Rows], reader: RowReader) -> Iterator[Document]:
    for row, where in rows(reader):
        document = reader.document(row, where)
        if document is not None:
            yield document


def _files(source: Source, key: str, seen: Seen, hint: Container | None = None) -> Callable[[RowReader], Rows]:
    def rows(reader: RowReader) -> Rows:
        for file in named_files(source, key.rpartition(".")[0], seen.notices):
            yield from read_rows(file, key, hint, reader)
        reader.finish()

    return rows


def _text_files(source: TextSource, key: str, notices: Notices | None = None) -> list[Path]:
    notices = notices if notices is not None else Notices()
    path, key = Path(source.text).expanduser(), f"{key}.text"
    if not path.exists():
        return files_of(source.text, key, notices)
    if not path.is_dir():
        return [path]
    everything = files_below(path, key, notices)
    try:
        listed = sorted(path.glob(source.glob))
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(
            f"{source.glob!r} is no pattern ({error})", key=key.replace(".text", ".glob"), fix='Write "**/*.txt"'
        ) from None
    if source.glob != ALL_TEXTS:
        found = matching(source.glob, listed, key, notices)
    else:
        found = chosen(path, [p for p in listed if p.is_file() and not set_aside(p, path)], key, notices)
        if (splits := splits_of(path, found, texts=True)) is not None:
            fix = 'Say which with `glob:`, as in "train/**/*.txt"; "**/*.*" is all'
            check_splits(path, splits, key, fix, notices)
    notices.unread.update(str(p.relative_to(path)) for p in everything)
    notices.unread -= {str(p.relative_to(path)) for p in found}
    return found


def _text(source: TextSource, key: str, seen: Seen) -> Iterator[Document]:
    found = _text_files(source, key, seen.notices)
    if source.separator:
        require_separator(found, key, source.separator)
    for file in found:
        for text in read_text(file, f"{key}.text", source.separator):
            yield Document(text=text)


def _hub(source: HubSource, key: str) -> Rows:
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
    for number, row in enumerate(rows, 1):
        yield {name: without_nulls(value) for name, value in row.items()}, f"{source.dataset}, row {number}"
