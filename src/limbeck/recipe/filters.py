"""Which answers of a teacher are learned: filters, and how many answers of a prompt are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from limbeck.recipe.base import Count, Section, Seed, Share

_AtLeast0 = Annotated[int, Field(ge=0)]


class Length(Section):
    """Limits on the length of an answer; its reasoning is not counted."""

    min_characters: _AtLeast0 | None = Field(None, description="Shorter answers are dropped.")
    max_characters: Count | None = Field(None, description="Longer answers are dropped.")
    min_words: _AtLeast0 | None = Field(None, description="Answers of fewer words are dropped.")
    max_words: Count | None = Field(None, description="Answers of more words are dropped.")
    max_reasoning_words: Count | None = Field(None, description="Answers with longer reasoning are dropped.")

    @model_validator(mode="after")
    def _possible(self) -> Length:
        pairs = (("characters", self.min_characters, self.max_characters), ("words", self.min_words, self.max_words))
        for unit, least, most in pairs:
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} ({least}) is greater than max_{unit} ({most})")
        return self


class Decontamination(Section):
    """Drop what overlaps with evaluation texts. Counts for 8 and 13 words are always reported."""

    ngram: Annotated[int, Field(ge=5, le=50)] = Field(
        13, description="Consecutive words that a prompt or an answer shares with an evaluation text."
    )
    common: Count = Field(
        10,
        description="An n-gram that stands in more prompts or evaluation texts than this is a template "
        "(instructions, boilerplate) and is ignored, as in GPT-3's appendix C.",
    )


class Filters(Section):
    """What is dropped before answers are chosen. Every filter reports a count and examples."""

    outcomes: tuple[Literal["length", "filtered", "refused", "tool_call"], ...] = Field(
        (), description="Outcomes that are learned beside complete answers. Default: none."
    )
    think_tags: bool = Field(
        True, description="Drop answers with stray or unclosed think tags, and reasoning without an answer."
    )
    require_reasoning: bool = Field(False, description="Drop answers without reasoning.")
    refusals: bool = Field(True, description="Drop answers that refuse (\"I'm sorry, but I can't help with that\").")
    length: Length = Field(default_factory=Length, description="Limits on the length of an answer.")
    repetition: Share | None = Field(
        0.5,
        description="Drop answers of which a greater share of the words repeats eight consecutive words from before. "
        "null: off.",
    )
    languages: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Keep answers in these languages (ISO 639-1 codes: `[en, de]`). Needs limbeck[api]. Answers too "
        "short to tell are kept.",
    )
    min_language_score: Share = Field(0.5, description="Confidence below which the language is not known.")
    exact_duplicates: bool = Field(True, description="Keep one of equal conversations.")
    near_duplicates: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Of conversations whose similarity (Jaccard, five-word shingles) reaches this, keep the first: "
        "0.8 is usual. Different answers to one prompt are not compared. Needs limbeck[api].",
    )
    decontaminate: Decontamination | None = Field(
        default_factory=Decontamination, description="Overlap with evaluation texts. null: off."
    )

    @model_validator(mode="after")
    def _codes(self) -> Filters:
        for code in self.languages or ():
            if not (2 <= len(code) <= 3 and code.isascii() and code.islower()):
                raise ValueError(f"languages: {code!r} is not a language code; write for example `en`")
        return self


Policy = Literal["all_correct", "shortest_correct", "diverse", "majority", "all"]


class Keep(Section):
    """Which answers of a prompt are learned, and how long the teacher is asked for more."""

    policy: Policy | None = Field(
        None,
        description="`all_correct`; `shortest_correct`; `diverse`: those correct answers that differ most; `majority`: "
        "answers that agree with the most frequent one, for prompts without a reference; `all`: right or wrong. "
        "Default: `all_correct` where answers are verified, else `all`.",
    )
    accepted: Count | None = Field(
        None,
        description="The most answers of a prompt that are kept. Default: 1 for `shortest_correct`, 2 for `diverse`, "
        "else all.",
    )
    at_most: Count | None = Field(
        None,
        description="Ask for more samples of a prompt until `accepted` answers are kept or this many were asked for. "
        "Default: `samples`, asked for at once.",
    )
    min_pass_rate: Share = Field(0.0, description="Set aside prompts of which a smaller share of answers is correct.")
    max_pass_rate: Share = Field(1.0, description="Set aside prompts of which a larger share is correct: too easy.")
    max_answers: Count | None = Field(None, description="The most answers kept in all, drawn at random.")
    seed: Seed = Field(0, description="Seed of that draw.")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        """``keep: all`` is short for ``keep: {policy: all}``."""
        return {"policy": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> Keep:
        if self.at_most is not None and self.accepted is None:
            raise ValueError("at_most needs `accepted`: how many answers of a prompt are enough")
        if self.at_most is not None and self.accepted is not None and self.accepted > self.at_most:
            raise ValueError(f"accepted ({self.accepted}) is greater than at_most ({self.at_most})")
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(f"min_pass_rate ({self.min_pass_rate}) is greater than max_pass_rate")
        return self
