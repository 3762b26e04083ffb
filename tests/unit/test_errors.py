"""Keys of errors: completed by the layer that knows its place in the recipe, and readable without one."""

from __future__ import annotations

import pytest

from limbeck.errors import LimbeckError, RecipeError, under


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (None, "teacher: got 3. Write 2"),
        (".path", "teacher.path: got 3. Write 2"),
        (".config.vocab_size", "teacher.config.vocab_size: got 3. Write 2"),
        ("data.seq_len", "data.seq_len: got 3. Write 2"),
    ],
)
def test_a_relative_key_is_completed_and_an_absolute_one_stays(key: str | None, line: str) -> None:
    with pytest.raises(RecipeError) as caught, under("teacher"):
        raise RecipeError("got 3", key=key, fix="Write 2")
    assert caught.value.line() == str(caught.value) == line


def test_sections_nest() -> None:
    says = r"^students\.small\.vocabulary\.size: got 3$"
    with pytest.raises(LimbeckError, match=says), under("students.small"), under(".vocabulary"):
        raise RecipeError("got 3", key=".size")


def test_an_error_outside_of_a_recipe_has_no_dot_before_its_key() -> None:
    assert RecipeError("got 3", key=".path").line() == "path: got 3"


def test_other_errors_pass_through() -> None:
    with pytest.raises(ValueError, match=r"^a bug$"), under("teacher"):
        raise ValueError("a bug")
