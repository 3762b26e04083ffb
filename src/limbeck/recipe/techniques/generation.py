"""How a teacher writes text for its students, and what of it they learn."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from limbeck.recipe.base import Count, NonNegative, Section, Seed
from limbeck.recipe.filters import Filters, Keep
from limbeck.recipe.verify import Verify

SELECTED = (
    "samples", "system", "examples", "stop", "max_prompts", "reasoning", "verify", "filters", "keep", "as_many_as",
)  # fmt: skip
"""Settings of a generation whose answers are asked for prompt by prompt, verified and chosen."""


class Example(Section):
    """One turn of a conversation: what is asked, and how it should be answered."""

    prompt: str = Field(min_length=1, description="What the user asks.")
    answer: str = Field(min_length=1, description="What the assistant answers.")


class Generation(Section):
    """How the teacher writes text for its students."""

    tokens: Count | None = Field(
        None, description="Tokens to write; default: `training.tokens` (each is then learned once)."
    )
    prompt_tokens: Count = Field(
        8, description="Plain text: the teacher continues the first so many tokens of training documents."
    )
    max_new_tokens: Count | None = Field(None, description="Length of an answer; default: the rest of a row.")
    temperature: NonNegative | None = Field(
        1.0, description="Sampling temperature; 0: greedy; null: left to an endpoint that refuses it."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Sample from the k most probable; 0: all.")
    batch_size: Count = Field(64, description="Answers written at a time, by a teacher whose weights are in hand.")
    seed: Seed = Field(0, description="Seed of the sampling. 0: an endpoint is sent none.")
    samples: Count = Field(1, description="Answers to each prompt.")
    system: str | None = Field(None, description="System text before conversations that have none; learned along.")
    examples: tuple[Example, ...] = Field(
        (),
        description="Turns that the teacher is shown before every conversation, after its system text. Students do "
        "not see them: they learn to answer without.",
    )
    stop: tuple[str, ...] = Field((), description="Texts that end an answer.")
    max_prompts: Count | None = Field(None, description="Prompts, by the hash of their documents; default: all.")
    reasoning: Literal["keep", "drop"] = Field(
        "keep",
        description="Whether students learn the teacher's thoughts: by their own chat template where it writes "
        "thoughts, else between think tags.",
    )
    verify: Verify | None = Field(None, description="How answers are checked against the data's own.")
    filters: Filters | None = Field(None, description="Which answers are left out.")
    keep: Keep | None = Field(None, description="Which of a prompt's answers are learned.")
    as_many_as: str | None = Field(
        None,
        description="A control: learn a random part of what is kept, of as many answers as the named technique learns.",
    )

    @property
    def is_selected(self) -> bool:
        """Whether answers are asked for prompt by prompt, journalled, and chosen from."""
        return any(getattr(self, name) != type(self).model_fields[name].default for name in SELECTED)

    def sampling(self) -> dict[str, Any]:
        """What decides which answers are asked for, as plain data: nothing of what is done with them."""
        chosen = {"tokens", "reasoning", "verify", "filters", "keep", "as_many_as"}
        if self.keep is not None and self.keep.at_most is not None:
            chosen -= {"verify", "keep"}  # verdicts decide how often a prompt is asked
        plain = self.model_dump(mode="json", exclude=chosen)
        decontaminate = (self.filters or Filters()).decontaminate
        if decontaminate != Filters().decontaminate:  # it decides which prompts are asked
            plain["decontaminate"] = None if decontaminate is None else decontaminate.model_dump(mode="json")
        return plain

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is selected is left out where it is not asked for: fingerprints of other recipes stay as they were."""
        plain: dict[str, Any] = handler(self)
        unset = {name for name in SELECTED if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in plain.items() if name not in unset}
