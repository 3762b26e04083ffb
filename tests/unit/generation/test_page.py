"""What docs/api-teachers.md shows is what recipes take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.recipe import ServedTeacher, parse_recipe
from limbeck.recipe.models import ConfigStudent, PathTokenizer
from limbeck.recipe.techniques import Generation, Hard, Soft
from limbeck.recipe.yaml_file import parse_yaml

PAGE = Path(__file__).parents[3] / "docs/api-teachers.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_ten_lines_are_a_recipe() -> None:
    recipe = parse_recipe(parse_yaml(BLOCKS[0]))
    assert isinstance(recipe.teacher, ServedTeacher)
    assert recipe.teacher.api_key_env == "OPENAI_API_KEY"
    lines = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 12


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_every_other_block_is_a_part_of_one(block: str) -> None:
    parts: list[dict[str, Any]] = [parse_yaml(part) for part in block.split("\n\n") if part.strip()]
    for part in parts:
        assert part.keys() <= {"teacher", "tokenizer", "student", "techniques", "generation"}
        if "teacher" in part:
            needed = {"api": "https://x.y/v1", "model": "m"} if "api" not in part["teacher"] else {}
            ServedTeacher.model_validate({**needed, **part["teacher"]})
        if "generation" in part:
            Generation.model_validate(part["generation"])
        if "tokenizer" in part:
            PathTokenizer.model_validate(part["tokenizer"])
        if "student" in part:
            ConfigStudent.model_validate(part["student"])
        for technique in part.get("techniques", ()):
            if technique != "alone":
                (Soft if technique["kind"] == "soft" else Hard).model_validate(technique)
