"""The corpus and how it is cut into rows."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from limbeck.recipe.base import Count, Section, by_key

DATE = datetime.date(2024, 7, 26)


class _Source(Section):
    max_documents: Count | None = Field(None, description="Take no more than this many documents.")


class TextSource(_Source):
    """Plain text: a file, or a folder of files."""

    text: str = Field(description="A UTF-8 text file, or a folder of them.")
    separator: str | None = Field(
        None, description="What stands between documents in a file. Default: a file is a document."
    )
    glob: str = Field("**/*.txt", description="Which files of a folder.")


class _TableSource(_Source):
    field: str = Field("text", description="The column that holds plain text.")


class JsonlSource(_TableSource):
    """JSON lines with `text`, or `messages`, or `prompt` and `response`."""

    jsonl: str = Field(description="A .jsonl file.")


class ParquetSource(_TableSource):
    """A Parquet file with `text`, or `messages`, or `prompt` and `response`."""

    parquet: str = Field(description="A .parquet file.")


class HubSource(_TableSource):
    """A data set by its hub name, through the `datasets` library."""

    dataset: str = Field(description="Name of the data set.")
    name: str | None = Field(None, description="Its configuration, if it has several.")
    split: str = Field("train", description="Its split.")
    revision: str | None = Field(None, description="Branch, tag or commit.")


class StdlibSource(_Source):
    """Text that every Python installation carries: needs no download."""

    stdlib: Literal["docstrings", "sources", "questions"] = Field(
        description="The standard library's docstrings (English prose), its sources (Python), or questions "
        "about its names, answered by their docstrings (conversations)."
    )


_SOURCES = ("text", "jsonl", "parquet", "dataset", "stdlib")
Source = Annotated[
    Annotated[TextSource, Tag("text")]
    | Annotated[JsonlSource, Tag("jsonl")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[HubSource, Tag("dataset")]
    | Annotated[StdlibSource, Tag("stdlib")],
    Discriminator(by_key(*_SOURCES)),
]


class Data(Section):
    """What everybody learns from, and what nobody does."""

    corpus: tuple[Source, ...] = Field(min_length=1, description="Where the documents come from.")
    heldout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05,
        description="Share of the documents that no one trains on, by the document's hash: it survives reordering.",
    )
    seq_len: Annotated[int, Field(ge=8)] = Field(256, description="Tokens of a row.")
    end: Literal["eos", "bos"] = Field(
        "eos",
        description="The token that ends a plain document. `bos`: for a teacher that was trained on documents "
        "one after another with nothing but the beginning mark between them (llama2.c and its like).",
    )
    pack: bool = Field(True, description="Put several documents into a row; they do not see each other.")
    date: datetime.date = Field(
        DATE,
        description="Today's date for chat templates that write one: the same conversations are the same tokens on "
        "any day.",
    )
