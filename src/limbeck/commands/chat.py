"""Talking to models side by side: the same words to each, every answer under its name."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.data.chat.encode import opening_mark, words_asked
from limbeck.data.chat.templates import DATE, Template, has_template
from limbeck.errors import InputError, RecipeError, under
from limbeck.formats.localise import localised
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate
from limbeck.models.load import load_model
from limbeck.models.tokenizer import load_tokenizer
from limbeck.recipe import PackageModel, PathModel
from limbeck.runtime.world import device


@dataclass
class Speaker:
    """A model with its own memory of the conversation. ``date``: what a chat template is told that writes one."""

    name: str
    lm: CausalLM
    date: datetime.date = DATE
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, words: str, sampling: Sampling) -> str:
        """What it says to ``words``, after all that was said before. A model without a chat template
        goes on from the bare words and remembers nothing."""
        tokenizer: Any = self.lm.tokenizer
        self.messages.append({"role": "user", "content": words})
        if has_template(tokenizer):
            text = Template(tokenizer, self.date).render(self.messages, prompt=True)
        else:
            text = opening_mark(tokenizer) + words
        said = self.go_on(text, sampling)
        self.messages.append({"role": "assistant", "content": said})
        return said

    def go_on(self, text: str, sampling: Sampling) -> str:
        """What it writes after ``text``, special tokens of a template included; nothing is remembered."""
        prompt = self.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not prompt:
            return ""
        most = self.lm.traits.max_positions or 1_000_000
        ((_, new),) = generate(self.lm, [prompt[-(most - 1) :]], sampling, 1)
        return str(self.lm.tokenizer.decode(new, skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class Question:
    """Of a held-out document: the words asked, the whole prompt as the run wrote it, and the data's own answer."""

    words: str
    prompt: str
    answer: str


def held_out_questions(place: str, count: int) -> list[Question]:
    """The first ``count`` held-out questions of a run (of plain text: beginnings of documents). The order is that
    of their hashes: they are not chosen.

    Raises:
        InputError: no run, or one whose data is not prepared.
    """
    from limbeck.data.corpus import open_corpus
    from limbeck.data.prompts import first_prompts
    from limbeck.recipe import load_recipe

    home = Path(place) / "data"
    if not (home / "heldout" / "manifest.json").exists():
        raise InputError(f"{place} is no run with held-out data", key="--held-out", fix="Name a run folder")
    with under("MODEL"):
        tokenizer = load_tokenizer(str(home / "tokenizer"))
    seq_len = load_recipe(Path(place) / "recipe.yaml").data.seq_len

    def text(ids: list[int], *, marks: bool) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=not marks))

    return [
        Question(words_asked(prompt, tokenizer), text(prompt, marks=True), text(rest, marks=False).strip())
        for prompt, rest in first_prompts(open_corpus(home / "heldout"), count, seq_len)
    ]


def speakers(
    where: list[str], only: Sequence[str] | None = None, tell: Callable[[str], None] = lambda line: None
) -> list[Speaker]:
    """Models by folder, hub name, .gguf file or ``PACKAGE/FILE.gguf``; of a run folder, its teacher and students.

    Args:
        where: the models.
        only: names of those that are wanted, or of techniques, for all of their students; None: all.
        tell: told what is loaded, and which students of a run are not finished.

    Raises:
        RecipeError, InputError: one cannot be loaded, or is not there.
    """
    specs = [(name, spec, place) for place in where for name, spec in _specs(place, tell)]
    for asked in only or ():
        if not any(_is_meant(name, asked) for name, _, _ in specs):
            known = ", ".join(name for name, _, _ in specs)
            raise RecipeError(f"there is no {asked}", key="--only", fix=f"There are {known}")
    found: list[Speaker] = []
    for name, spec, place in specs:
        if only is None or any(_is_meant(name, asked) for asked in only):
            tell(f"loading {name} ...")
            with under("MODEL"):
                path, _ = localised(spec)
                tokenizer = load_tokenizer(path.path, revision=path.revision)
                found.append(Speaker(name, load_model(path, tokenizer, device=device()), _date(Path(place))))
    return found


def _is_meant(name: str, asked: str) -> bool:
    return name == asked.strip() or name.startswith(f"{asked.strip()} / ")


def _date(run: Path) -> datetime.date:
    """The date that the templates of a run were told."""
    from limbeck.recipe import load_recipe

    return load_recipe(run / "recipe.yaml").data.date if (run / "stages").is_dir() else DATE


def _specs(place: str, tell: Callable[[str], None]) -> list[tuple[str, PathModel | PackageModel]]:
    folder = Path(place)
    if (folder / "stages").is_dir():
        return _of_run(folder, tell)
    if not folder.exists() and folder.parent.is_dir() and any(folder.parent.glob("*/stages")):
        raise RecipeError(f"there is no {place}", key="MODEL", fix=f"There are {_runs_beside(folder)}")
    if place.endswith(".gguf") and not folder.exists() and place.count("/") == 1:
        return [(place, PackageModel(package=place))]
    return [(folder.name if folder.exists() else place, PathModel(path=place, dtype="auto"))]


def _runs_beside(folder: Path) -> str:
    return ", ".join(str(stages.parent) for stages in sorted(folder.parent.glob("*/stages"))[:5])


def _of_run(run: Path, tell: Callable[[str], None]) -> list[tuple[str, PathModel | PackageModel]]:
    """The teacher of a run and the students of its first seed."""
    from limbeck.recipe import ConfigTeacher, ServedTeacher, load_recipe

    recipe = load_recipe(run / "recipe.yaml")
    specs: list[tuple[str, PathModel | PackageModel]] = []
    unfinished: list[str] = []
    if (run / "teacher" / "config.json").exists():
        specs.append(("teacher", PathModel(path=str(run / "teacher"), dtype="auto")))
    elif not isinstance(recipe.teacher, ConfigTeacher | ServedTeacher):
        specs.append(("teacher", recipe.teacher))
    for technique in recipe.techniques:
        for name in recipe.named_students:
            folder = run / "arms" / f"{technique.label}-seed{recipe.seeds[0]}" / "students" / name
            label = technique.label if recipe.student is not None else f"{technique.label} / {name}"
            if folder.is_dir():
                specs.append((label, PathModel(path=str(folder), dtype="auto")))
            else:
                unfinished.append(label)
    if unfinished:
        tell(f"not finished yet: {', '.join(unfinished)}")
    if not specs:
        raise RecipeError(f"{run} holds no finished model", fix="Let the run go on first")
    return specs
