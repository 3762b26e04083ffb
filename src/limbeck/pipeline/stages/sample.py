"""Asking a teacher: every prompt as often as the recipe says, through the journal, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.chat.encode import encode_prompt
from limbeck.data.documents.sources import documents
from limbeck.errors import InputError, under
from limbeck.files import whole_folder
from limbeck.generation.api.served import ServedSampler
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.local import LocalTeacher, as_document
from limbeck.generation.prompts import Prompt, prompts_among, requests_for
from limbeck.generation.request import Request
from limbeck.generation.text import SHORTEST_ANSWER
from limbeck.models.causal_lm import CausalLM
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pipeline.shared.base import (
    DATA,
    MACHINE,
    TEACHER,
    PipelineStage,
    Text,
    data_key,
    lease_teacher,
    located,
    open_text,
    pool,
    precision,
)
from limbeck.pipeline.stages.teacher import teacher_spec
from limbeck.recipe import Data, Endpoint, Generation, PackageModel, PathModel, ServedTeacher, fingerprint
from limbeck.runtime.pool import ModelRef
from limbeck.workflow.stage import Context, Facts, Plain


@dataclass(frozen=True, kw_only=True)
class Sample(PipelineStage):
    """What a teacher answers. The journal holds it; this stage leaves a list of what was asked.

    Attributes:
        generation, data: sections of the recipe.
        asked_precision: the recipe's, of a teacher whose weights are in hand.
        served: section of a teacher that is called; None: its weights are in hand.
        journals: folder of the journals of teachers that are called.
        after: stages that write the same journal before.
    """

    generation: Generation
    data: Data
    asked_precision: str
    served: ServedTeacher | None = None
    journals: str = ""
    after: tuple[str, ...] = ()
    place: str = "techniques"
    urgency = 2  # others wait for it

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return (MACHINE, DATA, TEACHER, *self.after)

    @property
    def name(self) -> str:
        teacher = self.served.endpoint.identity if self.served is not None else self.asked_precision
        return f"sample-{fingerprint(self.generation.sampling(), teacher, self.data.seq_len)[:8]}"

    @property
    def title(self) -> str:
        return f"{self.served.model} answers" if self.served is not None else "the teacher answers"

    def key(self, up: Facts) -> dict[str, Plain]:
        return {
            "generation": self.generation.sampling(),
            "data": data_key(self.data, up[DATA], pack=False),
            "teacher": up[TEACHER]["fingerprint"],
            **({} if self.served else {"precision": precision(self.asked_precision, up[MACHINE])}),
        }

    def outputs(self) -> Sequence[str]:
        return (f"text/{self.name}",)

    def partial(self) -> Sequence[str]:
        # A shared journal is begun by no stage of this run alone.
        return () if self.served is not None else (f"text/{self.name}.sqlite",)

    def journal(self, run: Path) -> Path:
        """Where the answers are."""
        if self.served is None:
            return run / "text" / f"{self.name}.sqlite"
        return journal_of(self.served.endpoint, run, self.journals)

    def work(self, up: Facts, context: Context) -> dict[str, Plain]:
        run, text = context.folder, open_text(context.folder)
        prompts, too_long = self._prompts(text)
        if too_long:
            context.note(f"{self.place}: {too_long:,} prompts leave no room for an answer in a row, and are not asked")
        asked = [(prompt, list(requests_for(prompt, self.generation, self.data.seq_len))) for prompt in prompts]
        requests = [request for _, each in asked for request in each]
        facts: dict[str, Plain]
        if self.served is not None:
            identity: Mapping[str, str] = self.served.endpoint.identity
            facts = self._buy(requests, self.served, run, context)
        else:
            local = self._local(up, run, text)
            identity = local.identity
            facts = self._write(requests, local, run, context)
        digest = hashlib.sha256()
        with whole_folder(run / "text" / self.name) as scratch, (scratch / "requests.jsonl").open("w") as out:
            for prompt, each in asked:
                keys = [request.key(identity) for request in each]
                digest.update("".join(keys).encode())
                row = {"prompt": prompt.plain(), "request": each[0].plain(), "keys": keys}
                out.write(json.dumps(row) + "\n")
        return {
            "prompts": len(asked),
            "requests": len(requests),
            "journal": str(self.journal(run)),
            "fingerprint": digest.hexdigest()[:16],
            **facts,
        }

    def _prompts(self, text: Text) -> tuple[list[Prompt], int]:
        """(what is asked, how many prompts are too long)."""
        generation, data = self.generation, self.data
        found = prompts_among(
            documents(data.corpus),
            text.train.keys,
            text.tokenizer,
            prompt_tokens=generation.prompt_tokens,
            system=generation.system,
        )
        kept: list[Prompt] = []
        too_long = 0
        for prompt in found:
            if generation.max_prompts is not None and len(kept) == generation.max_prompts:
                break
            asked = as_document(Request(messages=prompt.messages, text=prompt.text, tools=prompt.tools))
            if len(encode_prompt(asked, text.tokenizer, data.date)) > data.seq_len - SHORTEST_ANSWER:
                too_long += 1
            else:
                kept.append(prompt)
        if not kept:
            raise InputError(
                "no document to train on asks anything", key="data.corpus", fix="Raise data.seq_len, or add documents"
            )
        return kept, too_long

    # ---------------------------------------------------------------------------- teachers that are called

    def _buy(self, requests: list[Request], served: ServedTeacher, run: Path, context: Context) -> dict[str, Plain]:
        path = self.journal(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        chain = [each if isinstance(each, Endpoint) else local_fallback(each) for each in served.chain]
        with Journal(path) as journal, context.task(self.title, len(requests), "answers") as task:
            ledger = Ledger(served.budget, journal.spent())
            before = journal.spent().nano_usd
            with under(TEACHER):
                summary = ServedSampler(chain, journal, ledger).write(requests, task.update)
            task.summary = summary.line()
            spent = journal.spent()
            return {
                "usd": spent.nano_usd / 1e9,
                "bought_now_usd": (spent.nano_usd - before) / 1e9,
                "tokens": spent.tokens,
                "notes": [f"{self.title}: {summary.line()}"],
            }

    # ------------------------------------------------------------------------- teachers whose weights are in hand

    def _local(self, up: Facts, run: Path, text: Text) -> LocalTeacher:
        asked = precision(self.asked_precision, up[MACHINE])
        spec, rounded = teacher_spec(up, run), asked == "bf16"

        @contextmanager
        def opened() -> Iterator[tuple[CausalLM, Any]]:
            with lease_teacher(spec, text, rounded=rounded) as lm:
                yield lm, text.tokenizer

        identity = {
            "weights": up[TEACHER]["fingerprint"],
            "tokenizer": up[DATA]["tokenizer"],
            "chat_template": str(up[DATA].get("chat_template")),
            "precision": asked,
        }
        return LocalTeacher(identity, opened, self.generation.batch_size, asked, self.data.date)

    def _write(self, requests: list[Request], teacher: LocalTeacher, run: Path, context: Context) -> dict[str, Plain]:
        with (
            Journal(self.journal(run)) as journal,
            context.task(self.title, len(requests), "answers") as task,
            under(TEACHER),
        ):
            write_batches(requests, teacher, journal, task.update)
            return {"tokens": journal.spent().tokens}


def write_batches(
    requests: Sequence[Request], teacher: LocalTeacher, journal: Journal, progress: Callable[[int], None]
) -> None:
    """Have a model whose weights are in hand write what the journal lacks, a whole batch at a time: a run that was killed
    ends with the same answers as one left alone."""
    done = 0
    missing = []
    for batch in teacher.batches(requests):
        if all(journal.get(request.key(teacher.identity)) is not None for request in batch):
            done += len(batch)
        else:
            missing.append(batch)
    progress(done)
    if not missing:
        return
    with teacher.opened() as (lm, tokenizer):
        for batch in missing:
            journal.put_many(teacher.write_batch(batch, lm, tokenizer), teacher.identity)
            done += len(batch)
            progress(done)


def journal_of(endpoint: Endpoint, run: Path, folder: str) -> Path:
    """The journal of a teacher that is called; ``folder``: the recipe's, else beside the run folder."""
    home = Path(folder).expanduser() if folder else run.parent / "journals"
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in endpoint.model)[:60].strip(".-")
    return home / f"{plain}-{fingerprint(endpoint.identity)[:8]}.sqlite"


def local_fallback(spec: PathModel | PackageModel) -> LocalTeacher:
    """A local model behind teachers that are called. It reads its own tokens: only its text is used."""
    found, _ = located(spec)

    @contextmanager
    def opened() -> Iterator[tuple[CausalLM, Any]]:
        tokenizer = load_tokenizer(found.path, revision=found.revision)
        with pool().lease(ModelRef.of(found), tokenizer=tokenizer) as lm:
            yield lm, tokenizer

    named = spec.package if isinstance(spec, PackageModel) else spec.path
    return LocalTeacher({"local": named, "dtype": spec.dtype}, opened)
