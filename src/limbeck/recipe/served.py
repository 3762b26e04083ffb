"""Teachers that can only be called: where they are, what they cost, and what their terms allow."""

from __future__ import annotations

import datetime
import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from limbeck.recipe.base import Count, NonNegative, Positive, Section


class Prices(Section):
    """USD per million tokens."""

    input: NonNegative = Field(description="Tokens of the prompt.")
    output: NonNegative = Field(description="Tokens written, reasoning included.")
    cached_input: NonNegative | None = Field(None, description="Prompt tokens read from a cache; default: `input`.")
    cache_write: NonNegative | None = Field(None, description="Prompt tokens put into a cache; default: `input`.")
    request: NonNegative = Field(0.0, description="USD per request, beside its tokens.")


class Terms(Section):
    """What a teacher's licence says about training students on its text."""

    licence: str | None = Field(None, description="Name of the licence or of the terms of service.")
    may_train_students: Literal["yes", "no", "unknown"] = Field(
        "unknown",
        description="Whether students may be trained on its text. `yes` needs `source`, `date` and `quote`; without "
        "them it counts as `unknown`. `no` is refused, unless `override` says why.",
    )
    source: str | None = Field(None, description="URL of the terms.")
    date: datetime.date | None = Field(None, description="When they were read.")
    quote: str | None = Field(None, description="The sentence that decides.")
    override: str | None = Field(
        None, description="Why the teacher is used although its terms say `no`; the data set's card records it."
    )

    @field_validator("may_train_students", mode="before")
    @classmethod
    def _yaml_truth(cls, value: Any) -> Any:
        """YAML reads a bare ``yes`` as true."""
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value

    @property
    def verdict(self) -> Literal["yes", "no", "unknown"]:
        """``may_train_students``; a ``yes`` that is not documented is ``unknown``."""
        documented = self.source and self.date and self.quote
        return self.may_train_students if documented or self.may_train_students == "no" else "unknown"


class Budget(Section):
    """The most that may be spent. What an answer could cost at most is reserved before it is asked for."""

    usd: NonNegative | None = Field(None, description="US dollars.")
    tokens: Count | None = Field(None, description="Tokens, of prompts and answers together.")

    @model_validator(mode="after")
    def _limits(self) -> Budget:
        if self.usd is None and self.tokens is None:
            raise ValueError("write `usd`, `tokens`, or both")
        return self


class Endpoint(Section):
    """A model behind HTTP."""

    api: str = Field(pattern=r"^https?://[^\s?#]+$", description="Base URL, for example https://api.openai.com/v1.")
    model: str = Field(min_length=1, description="The model's name, as the endpoint knows it.")
    protocol: Literal["chat", "completions", "anthropic", "gemini"] = Field(
        "chat",
        description="`chat` and `completions`: OpenAI's and what is compatible with them; `anthropic`: Messages; "
        "`gemini`: generateContent.",
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the key. The key itself is written nowhere.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="More fields of the request's body, as they are (`reasoning_effort: low`)."
    )
    concurrency: Count = Field(64, description="Requests in flight at most.")
    deadline_seconds: Positive = Field(600.0, description="Time for one answer, over all its retries.")
    patience_seconds: Positive = Field(
        300.0, description="How long nothing but rate limits and failures is borne before the next teacher is asked."
    )
    max_usd_per_answer: Positive | None = Field(
        None, description="A request whose bound costs more goes to the next teacher."
    )
    batch: bool = Field(False, description="Send through the provider's batch endpoint: half the price, hours later.")
    prices: Prices | None = Field(None, description="Default: what the package genai-prices knows of the model.")
    terms: Terms = Field(default_factory=Terms, description="What its licence says about training students.")

    @field_validator("api")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if "@" in url.split("/")[2]:
            raise ValueError("holds a user name or password; name an environment variable in `api_key_env`")
        return url.rstrip("/")

    @property
    def identity(self) -> dict[str, str]:
        """What makes it another teacher: another address, model, or other fields of the body."""
        identity = {"api": self.api, "model": self.model, "protocol": self.protocol}
        if self.extra:
            identity["extra"] = json.dumps(self.extra, sort_keys=True)
        return identity
