from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Co, Ramp, Recipe, Soft, fingerprint, load_recipe, parse_recipe
from limbeck.recipe.yaml_file import apply_overrides, parse_yaml

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "run": "runs/x",
    "teacher": {"path": "t"},
    "student": {"config": {"model_type": "llama"}},
    "data": {"corpus": [{"text": "a.txt"}]},
    "techniques": ["alone", "soft"],
    "training": {"tokens": 10},
}


UNDESCRIBED = {"kind", "start", "end", "shape"}  # the names say it


def refused(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(apply_overrides(copy.deepcopy(MINIMAL), overrides))
    line = caught.value.line()
    assert "\n" not in line
    return line


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run == f"runs/{path.stem}"
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_there_are_shipped_recipes() -> None:
    assert {"demo", "tinystories"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["trainning.lr=3"], "trainning", "`training`"),
        (["training.lrr=3"], "training.lrr", "`lr`"),
        (["techniques=[sofd]"], "techniques.0", "`soft`"),
        (["techniques=[{kind: soft, temprature: 2}]"], "techniques.0.temprature", "`temperature`"),
        (["techniques=[{name: x}]"], "techniques.0", "`kind:`"),
        (["techniques=[soft, soft]"], "techniques", "stands twice"),
        (["techniques=[{kind: soft, kd_weight: 0}]"], "techniques.0", "kind: alone"),
        (["techniques=[{kind: soft, kd_weight: {start: 1, ends: 0}}]"], "techniques.0.kd_weight.ends", "`end`"),
        (["training.lr=abc"], "training.lr", "'abc'"),
        (["training.lr=-1"], "training.lr", "greater than 0"),
        (["training.lr=yes"], "training.lr", "true, where a number belongs"),
        (["student={from: teacher, layers: []}"], "student.layers", "at least 1"),
        (["student={from: teacher, layers: [-1, 2]}"], "student.layers.0", "-1"),
        (["techniques=[{kind: soft, hidden: {layers: []}}]"], "techniques.0.hidden.layers", "at least 1"),
        (["techniques=[{kind: soft, hidden: {weight: 0}}]"], "techniques.0.hidden", "leave `hidden` out"),
        (["training={}"], "training.tokens", "is missing"),
        (["teacher={}"], "teacher", "path, package, config"),
        (["teacher.config={}"], "teacher", "exactly one of path, package, config"),
        (["teacher=foo"], "teacher", "'foo'"),
        (["data.corpus=[]"], "data.corpus", "Write at least 1 item"),
        (["seeds=[]"], "seeds", "Write at least 1 item"),
        (["seeds=3"], "seeds", "Write a list"),
        (["seeds=[x]"], "seeds.0", "Write a whole number"),
        (["training.tokens=1.5"], "training.tokens", "Write a whole number"),
        (["training.tokens=0"], "training.tokens", "Write a number greater than"),
        (["teacher=/models/x"], "teacher", "`teacher.path=/models/x`"),
        (["student={a: {path: x}, b: {path: y}}"], "student", "several students stand under `students:`"),
        (["data.corpus=[{txt: 3}]"], "data.corpus.0", "text, jsonl"),
        (["data.corpus.0.separatr=x"], "data.corpus.0.separatr", "`separator`"),
        (["data.corpus.3.text=x"], "data.corpus.3.text", "list of 1"),
        (["student=null"], "student", "either"),
        (["student.lora={rank: 4}"], "student.lora", "unknown key"),
        (["tokenizer={train: {vocab_size: 400}}"], "tokenizer", "leave `tokenizer` out"),
        (["seeds=[1, 1]"], "seeds", "twice"),
        (["students={a b: {path: x}}", "student=null"], "students", "plain name"),
        (["students={Teacher: {path: x}}", "student=null"], "students", "another name"),
        (["students={a: {path: x}, A: {path: x}}", "student=null"], "students", "capitals aside"),
        ([f"students={{{'a' * 61}: {{path: x}}}}", "student=null"], "students", "longer than 60"),
        (["techniques=[{kind: soft, name: teacher}]"], "techniques.0.name", "the teacher"),
        (["techniques=[alone, {kind: co, name: Teacher}]"], "techniques.1.name", "the teacher"),
        (["techniques=[{kind: soft, name: labels}]"], "techniques.0.name", "a source"),
        (
            ["techniques=[{kind: soft, name: small}]", "students={small: {path: x}}", "student=null"],
            "techniques.0.name",
            "a student",
        ),
        (["techniques=[{kind: soft, name: alone}]"], "techniques.0.name", "another kind"),
        (["techniques=[{kind: alone, name: Soft}]"], "techniques.0.name", "another kind"),
        (["techniques=[soft, {kind: soft, name: SOFT}]"], "techniques", "stands twice"),
        (["techniques=[{kind: soft, name: soft-seed1}]"], "techniques.0.name", "-seed"),
        (["techniques=[{kind: soft, name: ../up}]"], "techniques.0.name", "pattern"),
        (["techniques=[{kind: soft, name: a/b}]"], "techniques.0.name", "pattern"),
        (["techniques=[{kind: soft, name: .hidden}]"], "techniques.0.name", "pattern"),
        (["techniques=[{kind: soft, name: 'co: teacher'}]"], "techniques.0.name", "pattern"),
        (['techniques=[{kind: soft, name: "a\\n"}]'], "techniques.0.name", "pattern"),
        ([f"techniques=[{{kind: soft, name: {'a' * 61}}}]"], "techniques.0.name", "at most 60"),
        (["seeds=[4294967296]"], "seeds.0", "less than 4294967296"),
        (["seeds=[true]"], "seeds.0", "a number belongs"),
        (
            ["techniques=[{kind: hard, generation: {seed: -1}}]"],
            "techniques.0.generation.seed",
            "greater than or equal to 0",
        ),
        (["techniques=[{kind: soft, generation: {seed: 4294967296}}]"], "techniques.0.generation.seed", "less than"),
        (["techniques=[{kind: soft, kd_weight: yes}]"], "techniques.0.kd_weight", "a number belongs"),
        (["training={tokens: 9, schedule: wsd, warmup: 0.9}"], "training", "lower one of them"),
        (["training.clip=yes"], "training.clip", "a number belongs"),
    ],
)
def test_an_error_names_the_key_and_what_to_write(overrides: list[str], key: str, says: str) -> None:
    line = refused(*overrides)
    assert key in line
    assert says in line


@pytest.mark.parametrize(("start", "lr"), [("trained", 2e-4), ("scratch", 2e-3)])
def test_a_co_teachers_rate_is_what_its_help_says(start: Any, lr: float) -> None:
    assert Co(teacher_start=start).peak_lr(2e-3) == pytest.approx(lr)
    assert Co(teacher_start=start, teacher_lr=5e-4).peak_lr(2e-3) == 5e-4
    said = Co.model_fields["teacher_lr"].description or ""
    assert "a tenth of `training.lr` where it is `trained`, `training.lr` where it starts from `scratch`" in said


def test_an_override_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"training\.lr=3e-4"):
        apply_overrides({}, ["training.lr"])


def test_numbers_are_numbers() -> None:
    assert parse_yaml("[1e-3, 1_000_000, 3.5e2, 12, 1e6]") == [1e-3, 1_000_000, 350.0, 12, 1e6]
    assert parse_yaml("[v1.2, 1e, e5]") == ["v1.2", "1e", "e5"]


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="stands twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n")


def test_overrides_reach_lists_and_make_sections() -> None:
    raw = apply_overrides(copy.deepcopy(MINIMAL), ["techniques.1={kind: soft, temperature: 2}", "evaluation.samples=0"])
    recipe = parse_recipe(raw)
    soft = recipe.techniques[1]
    assert isinstance(soft, Soft)
    assert soft.temperature == 2
    assert recipe.evaluation.samples == 0


def test_a_weight_may_be_a_ramp() -> None:
    recipe = parse_recipe(
        apply_overrides(copy.deepcopy(MINIMAL), ["techniques=[{kind: co, kd_weight: {start: 0, end: 0.9}}]"])
    )
    assert recipe.techniques[0].kd_weight == Ramp(start=0, end=0.9)  # type: ignore[union-attr]


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(MINIMAL).run = "elsewhere"  # type: ignore[misc]


def test_fingerprints_follow_the_content() -> None:
    recipe = parse_recipe(MINIMAL)
    assert fingerprint(recipe.training) == fingerprint(recipe.training.model_copy())
    assert fingerprint(recipe.training) != fingerprint(recipe.training.model_copy(update={"lr": 0.5}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"- a\n- b\n", "mapping"),
        (b"a: [1, 2\n", "not YAML"),
        ("run: caf\xe9".encode("latin1"), "not UTF-8"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("run: x")
    with pytest.raises(RecipeError, match=r"Did you mean .*demo\.yaml"):
        load_recipe(tmp_path / "dmeo.yaml")


def test_the_schema_describes_every_key() -> None:
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema  # plain data, for `limbeck schema`
    for name, section in schema["$defs"].items():
        for key, described in section.get("properties", {}).items():
            assert described.get("description") or key in UNDESCRIBED, f"{name}.{key}"
    assert set(schema["$defs"]["Training"]["properties"]) >= {"tokens", "micro_batch_size", "lr"}


def test_help_and_recipe_load_no_torch() -> None:
    code = "import sys, limbeck.cli, limbeck.recipe; print('torch' in sys.modules or 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_seed_that_a_recipe_may_name_can_write(seed: int) -> None:
    """Of a seed are made those of batches, and of those the generator's, which holds 64 bits."""
    from limbeck.generation.text import Plan
    from limbeck.recipe import Generation
    from tests.unit.test_data import corpus_of

    corpus = corpus_of([(list(range(1, 40)), [True] * 39)])
    plan = Plan.of(Generation(seed=seed, batch_size=2), corpus, 32, {"fingerprint": "toy"})
    batches = [plan.batch(number) for number in range(3)]
    assert [len(prompts) for prompts, _ in batches] == [2, 2, 2]
    asked = [sampling.seed for _, sampling in batches]
    assert len(set(asked)) == 3
    assert all(0 <= each * 1_000_003 + 1_000_000 < 2**63 for each in asked)
