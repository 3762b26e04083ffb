"""The corpus and how it is cut into rows."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from limbeck.recipe.base import Count, Section, by_key

TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""The date that Llama 3.2's template falls back to. Any other would do: a corpus must not depend on the day."""


class _Source(Section):
    max_documents: Count | None = Field(None, description="Take no more than this many documents.")


class TextSource(_Source):
    """Plain text: a file, or a folder of files."""

    text: str = Field(description="A UTF-8 text file, or a folder of them.")
    separator: str | None = Field(
        None, min_length=1, description="What stands between documents in a file. Default: a file is a document."
    )
    glob: str = Field("**/*.txt", description="Which files of a folder.")


class Columns(Section):
    """Names of columns, where they are not the usual ones."""

    text: str | None = Field(None, description="Plain text.")
    messages: str | None = Field(None, description="Conversations: lists of messages.")
    prompt: str | None = Field(None, description="What is asked; with `response`.")
    response: str | None = Field(None, description="What is answered; with `prompt`.")
    tools: str | None = Field(None, description="Definitions of tools, handed to the chat template.")

    @model_validator(mode="after")
    def _pairs(self) -> Columns:
        if (self.prompt is None) != (self.response is None):
            raise ValueError("write both `prompt` and `response`, or neither")
        if self.text is not None and self.prompt is not None:
            raise ValueError("write `text`, or `prompt` and `response`: a row is one or the other")
        named = [name for name in (self.text, self.messages, self.prompt, self.response) if name is not None]
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise ValueError(f"names the column {twice!r} twice")
        return self


class _TableSource(_Source):
    field: str = Field("text", description="The column that holds plain text, in rows that hold no conversation.")
    columns: Columns = Field(default_factory=Columns, description="Which column holds what.")


class FilesSource(_TableSource):
    """Files of rows or of text, recognised by their content: JSON lines, JSON arrays, CSV, TSV, Parquet, Arrow, plain
    text; plain or compressed (.gz, .zst, .bz2, .xz)."""

    files: str | tuple[str, ...] = Field(description="A file, a folder, a pattern (`data/*.jsonl.gz`), or a list.")


class JsonlSource(_TableSource):
    """JSON lines, or any other file of rows."""

    jsonl: str | tuple[str, ...] = Field(description="A .jsonl file, a pattern, or a list.")


class ParquetSource(_TableSource):
    """Parquet files, or any other files of rows."""

    parquet: str | tuple[str, ...] = Field(description="A .parquet file, a pattern, or a list.")


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


_SOURCES = ("files", "text", "jsonl", "parquet", "dataset", "stdlib")
Source = Annotated[
    Annotated[FilesSource, Tag("files")]
    | Annotated[TextSource, Tag("text")]
    | Annotated[JsonlSource, Tag("jsonl")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[HubSource, Tag("dataset")]
    | Annotated[StdlibSource, Tag("stdlib")],
    Discriminator(by_key(*_SOURCES)),
]


class Data(Section):
    """The corpus, how it is cut into rows, and the share that is held out."""

    corpus: tuple[Source, ...] = Field(min_length=1, description="Where the documents come from.")
    prompts: tuple[Source, ...] = Field(
        (),
        description="Questions for a teacher, beside those of the corpus; rows need no answer. Only what it answers is "
        "learned, by `hard`. Held-out documents are of the corpus alone.",
    )
    heldout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05,
        description="Share of the documents that is held out for measuring. A document's hash decides: reordering "
        "the corpus changes nothing.",
    )
    seq_len: Annotated[int, Field(ge=8)] = Field(256, description="Tokens of a row.")
    end: Literal["eos", "bos"] = Field(
        "eos",
        description="The token that ends a plain document. `bos`: for a teacher that was trained on documents "
        "one after another with nothing but the BOS token between them (llama2.c and its like).",
    )
    pack: bool = Field(True, description="Put several documents into a row; they do not see each other.")
    date: datetime.date = Field(
        TEMPLATE_DATE,
        description="What a chat template is told that writes today's date: the same on every day.",
    )
