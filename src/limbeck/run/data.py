"""The corpus in tokens: read into a spool, tokenised as far as the recipe can use it, resumable."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.data.chat import template_facts
from limbeck.data.corpus import FORMAT, Encoder, Enough, holdout_count, open_corpus, write_corpus
from limbeck.data.rows import Seen
from limbeck.data.sources import documents, file_stamps
from limbeck.data.spool import Spool, fingerprint_of
from limbeck.display import Bar, Display
from limbeck.errors import InputError
from limbeck.files import resumable_folder, whole_folder
from limbeck.models.load import load_model
from limbeck.models.tokenizer import OTHER, load_tokenizer, token_map_fingerprint, train_tokenizer
from limbeck.models.vocabulary import cut_tokenizer
from limbeck.recipe import PathModel, Recipe, TrainedTokenizer
from limbeck.run.budget import TOKENIZER_BYTES, enough_to_measure, enough_to_train, is_whole, require_enough
from limbeck.run.check import student_tokens
from limbeck.run.folder import RunFolder
from limbeck.run.prepare import OWN_HELDOUT, recipe_keys


def prepare_data(
    recipe: Recipe, folder: RunFolder, tokenizer: Any, teacher: PathModel | None, display: Display
) -> tuple[Any, dict[str, Any]]:
    """Tokenizer and corpora in the run folder. Returns the run's tokenizer and the facts about the data.

    The run's tokenizer is the teacher's, one trained on the corpus, or the teacher's cut to the tokens
    that the corpus uses.
    """
    data = recipe.data
    inputs = _inputs(recipe, tokenizer)
    home = folder.path / "data"
    _adopt_moved_corpus(recipe, folder, inputs)
    later = [folder.path / part for part in ("teacher", "cut", "arms")]
    before = folder.last("data")
    facts = folder.done("data", inputs, made=[home], later=later, keys=recipe_keys(recipe))
    if facts is not None:
        display.kept("data")
        if (
            facts["files"] != file_stamps(data.corpus)
            and fingerprint_of(documents(data.corpus)) != facts["fingerprint"]
        ):
            display.warn("the corpus has changed since this run read it; the run goes on with what it read")
        require_enough(recipe, facts, str(home))
        return load_tokenizer(str(home / "tokenizer"), key="tokenizer"), facts
    stamps = file_stamps(data.corpus)
    enough = {"train": enough_to_train(recipe), "heldout": enough_to_measure(recipe)}
    begun = {**inputs, "files": stamps, "enough": {name: [e.labels, e.documents] for name, e in enough.items()}}
    with resumable_folder(home, begun) as scratch:
        spool = _spooled(recipe, scratch / "spool", display)
        if before is not None and before["fingerprint"] != spool.fingerprint and any(path.exists() for path in later):
            raise InputError(
                f"{home} is torn, and the corpus has changed since it was read",
                key="data.corpus",
                fix="Bring back the corpus as it was, or name another `run:` folder",
            )
        parts = _parts(spool, data.heldout)
        tokenizer = _tokenizer(recipe, scratch, spool, parts, tokenizer, teacher, display)
        encoder = Encoder(spool, tokenizer, data.date)
        remarks = _write(scratch, encoder, parts, enough, display)
        spool.remove()
    for remark, count in sorted(remarks.items()):
        display.warn(f"{remark} ({count:,} documents)")
    facts = {
        "fingerprint": spool.fingerprint,
        "files": stamps,
        "tokenizer": token_map_fingerprint(tokenizer),
        "vocabulary": len(tokenizer.get_vocab()),
        **template_facts(tokenizer, data.date),
        **{name: _facts(home / name, part) for name, part in parts.items()},
    }
    if not (is_whole(facts["train"]) and is_whole(facts["heldout"])):
        display.note(
            f"data: {sum(facts[name]['documents'] for name in parts):,} of {len(spool):,} documents were tokenised, "
            f"which is enough for this recipe"
        )
    return tokenizer, folder.finish("data", facts)


def _inputs(recipe: Recipe, tokenizer: Any) -> dict[str, Any]:
    """What the corpus in tokens is made from."""
    data = recipe.data
    # A template's date matters only where it writes one, and then it is in its facts.
    template = template_facts(tokenizer, data.date) if tokenizer is not None else {"chat_template": None, "date": None}
    return {
        "data": {
            "corpus": [source.model_dump(mode="json") for source in data.corpus],
            "heldout": data.heldout,
            "end": data.end,
            "date": template["date"],
        },
        "chat_template": template["chat_template"],
        "format": FORMAT,
        "tokenizer": token_map_fingerprint(tokenizer) if tokenizer is not None else recipe.tokenizer.model_dump(),  # type: ignore[union-attr]
        **({"vocabulary": recipe.vocabulary.model_dump(mode="json")} if recipe.vocabulary is not None else {}),
    }


def _parts(spool: Spool, share: float) -> dict[str, range]:
    """Which documents are of which part, by hash."""
    held_out = holdout_count(spool.keys, share)
    return {"train": range(held_out, len(spool)), "heldout": range(held_out)}


def _facts(folder: Path, part: range) -> dict[str, int]:
    corpus = open_corpus(folder)
    facts = {"documents": len(corpus), "of": len(part), "labels": corpus.labels(), "bytes": int(corpus.n_bytes.sum())}
    return facts


def _spooled(recipe: Recipe, folder: Path, display: Display) -> Spool:
    """The documents of the recipe, read now or by an earlier process."""
    if Spool.is_done(folder):
        display.kept("read the corpus")
        return Spool(folder)
    seen: dict[str, Seen] = {}
    with display.stage("read the corpus", unit="documents") as bar, _showing(bar) as progress:
        spool = Spool.write(folder, documents(recipe.data.corpus, seen), progress)
    for key, found in seen.items():
        display.note(f"{key}: {found.line()}")
        if left_out := found.left_out():
            display.warn(f"{key}: {left_out}, and were left out")
    return spool


def _write(
    folder: Path, encoder: Encoder, parts: dict[str, range], enough: dict[str, Enough], display: Display
) -> Counter[str]:
    """Tokenise both parts. Returns what is to be said of them."""
    remarks: Counter[str] = Counter()
    with display.stage("data", len(encoder.spool), "documents") as bar, _showing(bar) as progress:
        for name, part in parts.items():
            remarks += write_corpus(folder / name, encoder, part, enough[name], progress)
    return remarks


@contextmanager
def _showing(bar: Bar) -> Iterator[Callable[[int, int], None]]:
    """A function that is told of documents and bytes, and shows them a megabyte at a time."""
    documents = n_bytes = shown = 0
    start: tuple[float, int] | None = None

    def show() -> None:
        nonlocal shown
        shown = n_bytes
        seconds = time.monotonic() - start[0] if start is not None else 0.0
        bar.update(documents, f"{(n_bytes - start[1]) / 1e6 / max(seconds, 1e-3):.1f} MB/s" if start else "")

    def progress(more: int, more_bytes: int) -> None:
        nonlocal documents, n_bytes, start
        documents, n_bytes = documents + more, n_bytes + more_bytes
        if start is None:  # what an earlier process did has no part in the speed
            start = time.monotonic(), n_bytes
            show()
        elif n_bytes - shown >= 1_000_000:
            show()

    yield progress
    show()


def _tokenizer(
    recipe: Recipe,
    folder: Path,
    spool: Spool,
    parts: dict[str, range],
    tokenizer: Any,
    teacher: PathModel | None,
    display: Display,
) -> Any:
    """The run's tokenizer, made now or by an earlier process; with a cut one, the held-out documents in the teacher's
    own tokens."""
    home = folder / "tokenizer"
    if home.exists():
        return load_tokenizer(str(home), key="tokenizer")
    if tokenizer is None:
        assert isinstance(recipe.tokenizer, TrainedTokenizer)
        first = parts["train"].start
        end = spool.block_end(first, len(spool), TOKENIZER_BYTES)
        if end < len(spool):
            display.note(f"tokenizer: trained on {end - first:,} of {len(spool) - first:,} documents")
        tokenizer = train_tokenizer(_texts(spool, first, end), recipe.tokenizer.train.vocab_size)
    if recipe.vocabulary is not None:
        assert teacher is not None  # the recipe made sure
        encoder = Encoder(spool, tokenizer, recipe.data.date)
        counts = _counts(encoder, parts, enough_to_train(recipe))
        lm = load_model(teacher, tokenizer, key="teacher")
        kept = student_tokens(recipe.vocabulary, counts, lm, tokenizer)
        del lm
        (folder / "vocabulary.json").write_text(
            json.dumps({"ids": kept.ids_K.tolist(), "teacher_size": kept.teacher_size, "other": kept.other})
        )
        write_corpus(folder / OWN_HELDOUT, encoder, parts["heldout"], enough_to_measure(recipe))
        tokenizer = cut_tokenizer(tokenizer, kept)
    with whole_folder(home) as scratch:
        tokenizer.save_pretrained(scratch)
    return tokenizer


def _texts(spool: Spool, start: int, end: int) -> Iterator[str]:
    while start < end:
        stop = spool.block_end(start, end)
        for _, document in spool.read(start, stop):
            yield from document.texts()
        start = stop


def _counts(encoder: Encoder, parts: dict[str, range], enough: Enough) -> Counter[int]:
    """How often the documents to train on use each token, as far as they are needed; held-out ones have no say.

    Raises:
        InputError: a document holds the name of the bucket as text, and would be read as one.
    """
    train, counts, labels = parts["train"], Counter[int](), 0
    for _, document in encoder.spool.read(0, len(encoder.spool)):
        if any(OTHER in text for text in document.texts()):
            raise InputError(
                f"document {document.key[:12]} holds the text {OTHER}, which a cut vocabulary gives to what it drops",
                key="data.corpus",
                fix="Remove it, or leave `vocabulary` out",
            )
    for block in encoder.blocks(train.start, train.stop):
        for _, encoded in block:
            counts.update(encoded.ids)
            labels += len(encoded.loss_mask) - bytes(encoded.loss_mask).count(0)
        if labels >= enough.labels:
            break
    return counts


def _adopt_moved_corpus(recipe: Recipe, folder: RunFolder, inputs: dict[str, Any]) -> None:
    """The same documents under another path, or in other files, are the same corpus."""
    was = folder.inputs("data")
    if was is None or was["data"].get("corpus") == inputs["data"]["corpus"]:
        return
    if {**was, "data": {**was["data"], "corpus": inputs["data"]["corpus"]}} != inputs:
        return  # more than the place has changed: let the marker say what
    made = folder.done("data", was)
    if made is not None and made["fingerprint"] == fingerprint_of(documents(recipe.data.corpus)):
        folder.adopt("data", inputs)
