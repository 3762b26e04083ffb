"""The corpus in tokens: read into a spool, tokenised as far as the recipe can use it, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.chat.encode import template_facts
from limbeck.data.corpus import FORMAT, Encoder, Enough, holdout_count, open_corpus
from limbeck.data.documents.sources import documents, file_stamps
from limbeck.data.documents.spool import Spool, fingerprint_of
from limbeck.errors import InputError, RunFolderError, under
from limbeck.files import resumable_folder, whole_folder
from limbeck.models.skeleton import rows_of, skeleton
from limbeck.models.tokenizer import load_tokenizer, token_map_fingerprint, train_tokenizer
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    PipelineStage,
    given_tokenizer,
    is_whole,
    located,
    run_tokenizer,
)
from limbeck.pipeline.shared.tokenising import (
    check_ids,
    cost_of_a_cut,
    cuts_of,
    facts_of,
    read_into,
    texts_of,
    token_counts,
    write_heldout_own,
    write_parts,
)
from limbeck.pipeline.text.generate import require_room
from limbeck.pruning.vocabulary import choose_tokens, cut_tokenizer
from limbeck.recipe import Data, Generation, PackageModel, PathModel, Tokenizer, TrainedTokenizer, Vocabulary
from limbeck.workflow.stage import Context, Facts, Plain

TOKENIZER_BYTES = 1 << 27
"""A tokenizer is trained on the first documents by hash, of about so many bytes."""


@dataclass(frozen=True, kw_only=True)
class CorpusStage(PipelineStage):
    """The run's tokenizer and its documents in tokens.

    The tokenizer is the teacher's, one trained on the corpus, or the teacher's cut to the tokens that the corpus uses.

    Attributes:
        data, tokenizer: sections of the recipe.
        teacher: whose tokens the run has; None for one that is trained here. ``place``: its place in the recipe.
        vocabulary: which tokens students keep; None: all.
        train, heldout: how much is enough.
        generations: sections that have text written, by their place in the recipe.
        models: those whose weights exist, by their place.
    """

    data: Data
    tokenizer: Tokenizer | None
    teacher: PathModel | PackageModel | None
    vocabulary: Vocabulary | None
    train: Enough
    heldout: Enough
    generations: Mapping[str, Generation]
    models: Mapping[str, PathModel | PackageModel]
    place: str = "teacher"
    needs = (MACHINE,)
    version = FORMAT

    @property
    def name(self) -> str:
        return DATA

    def key(self, up: Facts) -> dict[str, Plain]:
        data, tokenizer = self.data, self._given()
        # A template's date matters only where it writes one, and then it is in its facts.
        none = {"chat_template": None, "date": None}
        template = template_facts(tokenizer, data.date) if tokenizer is not None else none
        own = self.tokenizer.model_dump() if self.tokenizer is not None else None
        return {
            "data": {
                "corpus": [source.model_dump(mode="json") for source in data.corpus],
                "heldout": data.heldout,
                "end": data.end,
                "date": template["date"],
            },
            "chat_template": template["chat_template"],
            "tokenizer": token_map_fingerprint(tokenizer) if tokenizer is not None else own,
            **({"vocabulary": self.vocabulary.model_dump(mode="json")} if self.vocabulary is not None else {}),
        }

    def outputs(self) -> Sequence[str]:
        return (DATA,)

    def is_equivalent(self, was: Mapping[str, Plain], now: Mapping[str, Plain], result: Mapping[str, Plain]) -> bool:
        """The same documents under another path, or in other files, are the same corpus."""
        moved = {**was, "data": {**was["data"], "corpus": now["data"]["corpus"]}}
        return moved == now and fingerprint_of(documents(self.data.corpus)) == result["fingerprint"]

    def check_kept(self, result: Mapping[str, Plain], folder: Path) -> Sequence[str]:
        self._require_enough(result)
        self._require_use(folder / DATA)
        cuts, lost = cuts_of(folder / DATA / "train", self.data)
        warnings = [f"data: {cuts}"] if cuts and lost else []
        stamps = file_stamps(self.data.corpus)
        if result["files"] != stamps and fingerprint_of(documents(self.data.corpus)) != result["fingerprint"]:
            warnings.append("the corpus has changed since this run read it; the run goes on with what it read")
        return warnings

    def _require_enough(self, facts: Mapping[str, Plain]) -> None:
        """Refuse to go on with a part of a corpus that is too small for the recipe as it is now."""
        fix = f"Name another `run:` folder, or delete its {DATA} to tokenise more, if nothing was trained on it"
        train, heldout = facts["train"], facts["heldout"]
        if not is_whole(train) and train["labels"] < self.train.labels:
            raise RunFolderError(
                f"{train['labels']:,} tokens of the corpus were tokenised, and {self.train.labels:,} are asked for",
                key="training.tokens",
                fix=fix,
            )
        if not is_whole(heldout) and heldout["documents"] < self.heldout.documents:
            raise RunFolderError(
                f"{heldout['documents']:,} held-out documents were tokenised", key="evaluation.max_documents", fix=fix
            )

    def _require_use(self, home: Path) -> None:
        """Refuse data that a model cannot read, or leaves no room to write, before a teacher is tuned for it."""
        train = open_corpus(home / "train")
        for place, generation in self.generations.items():
            require_room(generation, train, self.data.seq_len, place)
        if self.vocabulary is None:  # a cut one has no token without a row
            rows = {place: rows_of(located(spec)[0]) for place, spec in self.models.items()}
            check_ids(rows, run_tokenizer(home), [train, open_corpus(home / "heldout")])

    def _given(self) -> Any:
        teacher = located(self.teacher)[0] if self.teacher is not None else None
        return given_tokenizer(self.tokenizer, teacher, self.data.end, self.place)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        data, home = self.data, context.folder / DATA
        stamps = file_stamps(data.corpus)
        enough = {"train": self.train, "heldout": self.heldout}
        begun = {
            **self.key(up),
            "format": FORMAT,
            "files": stamps,
            "enough": {name: [e.labels, e.documents] for name, e in enough.items()},
        }
        notes: list[str] = []
        with resumable_folder(home, begun) as scratch:
            spool = self._spooled(scratch / "spool", context)
            before = context.previous
            if before is not None and before["fingerprint"] != spool.fingerprint and context.is_needed:
                raise InputError(
                    f"{home} is torn, and the corpus has changed since it was read",
                    key="data.corpus",
                    fix="Bring back the corpus as it was, or name another `run:` folder",
                )
            held_out = holdout_count(spool.keys, data.heldout)
            parts = {"train": range(held_out, len(spool)), "heldout": range(held_out)}
            tokenizer = self._tokenizer(scratch, spool, parts, context)
            remarks = write_parts(scratch, Encoder(spool, tokenizer, data.date), parts, enough, context)
            if self.vocabulary is not None:
                own = Encoder(spool, self._given(), data.date)
                write_heldout_own(scratch, own, parts["heldout"], self.heldout)
            spool.remove()
        self._require_use(home)
        for remark, count in sorted(remarks.items()):
            context.warn(f"{remark} ({count:,} documents)")
        cuts, lost = cuts_of(home / "train", data)
        if cuts:
            (context.warn if lost else context.note)(f"data: {cuts}")
        found = {name: facts_of(home / name, part) for name, part in parts.items()}
        if not all(map(is_whole, found.values())):
            context.note(
                f"data: {sum(part['documents'] for part in found.values()):,} of {len(spool):,} documents were "
                "tokenised, which is enough for this recipe"
            )
        if self.vocabulary is not None:
            notes.append(cost_of_a_cut(home))
        return {
            "fingerprint": spool.fingerprint,
            "files": stamps,
            "tokenizer": token_map_fingerprint(tokenizer),
            "vocabulary": len(tokenizer.get_vocab()),
            **template_facts(tokenizer, data.date),
            **found,
            "notes": notes,
        }

    def _spooled(self, folder: Path, context: Context) -> Spool:
        """The documents of the recipe, read now or by an earlier process."""
        if Spool.is_done(folder):
            context.skip("read the corpus")
            return Spool(folder)
        return read_into(folder, self.data, self._given(), context)

    def _tokenizer(self, folder: Path, spool: Spool, parts: dict[str, range], context: Context) -> Any:
        """The run's tokenizer, made now or by an earlier process."""
        home = folder / "tokenizer"
        if home.exists():
            with under("tokenizer"):
                return load_tokenizer(str(home))
        tokenizer = self._given()
        if tokenizer is None:
            assert isinstance(self.tokenizer, TrainedTokenizer)
            first = parts["train"].start
            end = spool.block_end(first, len(spool), TOKENIZER_BYTES)
            if end < len(spool):
                context.note(f"tokenizer: trained on {end - first:,} of {len(spool) - first:,} documents")
            tokenizer = train_tokenizer(texts_of(spool, first, end), self.tokenizer.train.vocab_size)
        if self.vocabulary is not None:
            assert self.teacher is not None  # the recipe made sure
            encoder = Encoder(spool, tokenizer, self.data.date)
            with under("student.vocabulary"):
                kept = choose_tokens(
                    skeleton(located(self.teacher)[0]),
                    tokenizer,
                    token_counts(encoder, parts["train"], self.train),
                    min_count=self.vocabulary.min_count,
                    size=self.vocabulary.size,
                    other=True,
                    added="used",
                )
            (folder / "vocabulary.json").write_text(kept.to_json())
            tokenizer = cut_tokenizer(tokenizer, kept)
        with whole_folder(home) as scratch:
            tokenizer.save_pretrained(scratch)
        return tokenizer
