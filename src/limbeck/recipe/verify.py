"""How answers are verified: each verifier is a section of its own, told apart by ``kind``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from limbeck.recipe.base import Count, Positive, Section
from limbeck.recipe.served import Endpoint

Ignored = Literal["case", "whitespace", "punctuation", "articles"]
JsonType = Literal["string", "integer", "number", "boolean", "null", "array", "object", "any"]

_After = Annotated[str, Field(min_length=1)]


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{value!r} is no regular expression ({error}); see the docs of Python's `re`") from None
    return value


class _Compared(Section):
    """A verifier that looks for the answer in a text and compares it with the reference."""

    after: _After | None = Field(
        None,
        description="The answer is what follows the last of these marks, up to the end of its line (GSM8K: `####`). "
        "A reference that holds the mark is cut in the same way. Default: the whole text.",
    )


class Exact(_Compared):
    """The answer is the reference, letter by letter."""

    kind: Literal["exact"] = "exact"
    ignore: tuple[Ignored, ...] = Field(
        ("whitespace",),
        description="What does not count: `case`, `whitespace` (at the ends, and how much between words), "
        "`punctuation`, `articles` (a, an, the).",
    )


class Regex(_Compared):
    """A regular expression matches."""

    kind: Literal["regex"] = "regex"
    pattern: Annotated[str, Field(min_length=1)] = Field(
        description="In the syntax of Python's `re`. It may match anywhere, unless it begins with `^` or ends with `$`."
    )
    reference: bool = Field(
        False, description="The first group, or the whole match, must also equal the reference, whitespace aside."
    )
    seconds: Positive = Field(2.0, description="CPU time after which an answer is undecided.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _pattern(value)


class Json(Section):
    """The answer is JSON: with these keys, of this schema, equal to the reference."""

    kind: Literal["json"] = "json"
    keys: tuple[str, ...] | dict[str, JsonType] | None = Field(
        None,
        description="Keys that the object must have, or keys with their types (`{name: string, age: integer}`): "
        f"{', '.join(get_args(JsonType))}.",
    )
    other_keys: bool = Field(False, description="Beside `keys`, others are allowed.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON Schema. References to other documents are refused."
    )
    reference: bool = Field(
        True,
        description="The answer must equal the reference, as parsed JSON: the order of keys does not count. Without a "
        "reference it is undecided. `false`: `keys` and `schema` alone decide.",
    )
    ignore: tuple[Ignored, ...] = Field((), description="What does not count in strings that are compared.")
    fenced: bool = Field(
        False, description="The JSON may stand in a fenced code block, with text around it. Else it is the whole text."
    )
    seconds: Positive = Field(2.0, description="CPU time for the schema, after which an answer is undecided.")

    @model_validator(mode="after")
    def _decides(self) -> Json:
        if not self.reference and self.keys is None and self.schema_ is None:
            raise ValueError("reference is false, so nothing but the syntax is verified; write `keys` or `schema`")
        return self


class Maths(_Compared):
    """The answer equals the reference as mathematics (the package math-verify decides)."""

    kind: Literal["maths"] = "maths"
    seconds: Positive = Field(2.0, description="CPU time after which an answer is undecided.")
    digits: Count = Field(6, description="Decimal digits to which numbers must agree.")


class Code(Section):
    """The answer is a Python program that passes the tests in the reference. It runs in a sandbox."""

    kind: Literal["code"] = "code"
    tests: Literal["asserts", "stdio"] = Field(
        "asserts",
        description="What the reference holds. `asserts`: Python that uses what the program defines and raises where "
        "it is wrong. `stdio`: JSON, a list of {input, output}, or {inputs: [...], outputs: [...]}.",
    )
    sandbox: Literal["strict", "weak"] = Field(
        "strict",
        description="`strict`: namespaces; where the system refuses them, so does limbeck. `weak`: without them there "
        "are only limits on time, memory and files, and on what may be opened and called.",
    )
    seconds: Positive = Field(10.0, description="CPU time of a program.")
    memory_mb: Count = Field(512, description="Memory of a program.")


class Judge(Section):
    """Another model says whether the answer is right."""

    kind: Literal["judge"] = "judge"
    teacher: Endpoint | None = Field(None, description="The judge. Default: the teacher judges itself.")
    instructions: str | None = Field(
        None,
        min_length=1,
        description="What the judge is told before it sees question, reference and answer. It must ask for a last line "
        "`VERDICT: correct` or `VERDICT: wrong`.",
    )
    votes: Count = Field(1, description="Judgements an answer; the majority decides.")
    max_new_tokens: Count = Field(1024, description="Length of a judgement.")
    temperature: Annotated[float, Field(ge=0)] | None = Field(None, description="Default: the endpoint's own.")


class Plugin(Section):
    """A verifier of an installed package, found by the entry point group `limbeck.verifiers`."""

    kind: Literal["plugin"] = "plugin"
    name: str = Field(min_length=1, description="Name of the entry point.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Handed to the verifier as they are.")
    seconds: Positive = Field(10.0, description="CPU time after which an answer is undecided.")


_Sections = Maths | Exact | Regex | Json | Code | Judge | Plugin
VERIFIERS: tuple[str, ...] = tuple(member.model_fields["kind"].default for member in get_args(_Sections))


def _section(value: Any) -> Any:
    """A bare name is a section with that ``kind``."""
    return {"kind": value} if isinstance(value, str) else value


def _or_their_names(schema: dict[str, Any]) -> None:
    """In the schema as in the recipe, a verifier that needs no settings may be just its name."""
    bare = [
        member.model_fields["kind"].default
        for member in get_args(_Sections)
        if not any(field.is_required() for field in member.model_fields.values())
    ]
    union = {name: schema.pop(name) for name in ("oneOf", "discriminator") if name in schema}
    schema["anyOf"] = [{"enum": bare}, union]


Verify = Annotated[
    Annotated[_Sections, Field(discriminator="kind")],
    BeforeValidator(_section),
    Field(json_schema_extra=_or_their_names),
]
"""A verifier: ``verify: maths`` or ``verify: {kind: json, keys: [name, age]}``."""
