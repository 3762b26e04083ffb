"""Charts and facts of the report, from what a run left on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.pipeline.build import build
from limbeck.pipeline.results.charts import charts_of
from limbeck.pipeline.results.comparison import Comparison
from limbeck.pipeline.results.report import Report, template_said
from limbeck.recipe import Recipe

_ALONE = {"loss/student<labels": 3.0, "loss/student": 3.0}
_SOFT = {"loss/student<labels": 3.0, "loss/student<teacher": 0.5, "loss/student": 0.75}


def _compared(run: Path) -> Comparison:
    report = build(_recipe(run))[-1]
    assert isinstance(report, Report)
    return report.compared


def _recipe(run: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "run": str(run),
            "data": {"corpus": [{"text": "a.txt"}]},
            "teacher": {"path": "owner/name"},
            "student": {"config": {"model_type": "llama"}},
            "techniques": [{"kind": "alone"}, {"kind": "soft"}, {"kind": "soft", "name": "warm", "temperature": 2.0}],
            "training": {"tokens": 1000},
            "seeds": [0, 1],
        }
    )


def _write(compared: Comparison, run: Path, parts: dict[str, dict[str, float]]) -> None:
    for arm in compared.arms():
        folder = run / arm.folder
        folder.mkdir(parents=True)
        lines = [{"step": step, "tokens": 100 * step, **parts[arm.technique.label]} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_weighted_loss_is_drawn_apart_for_each_technique_of_several_parts(tmp_path: Path) -> None:
    compared = _compared(tmp_path)
    _write(compared, tmp_path, {"alone": _ALONE, "soft": _SOFT, "warm": _SOFT})
    charts = {chart.title: chart for chart in charts_of(compared, tmp_path)}
    assert list(charts)[:2] == ["The loss of soft", "The loss of warm"]
    assert "The loss of alone" not in charts  # it has one part, which is drawn as such
    for label in ("soft", "warm"):
        chart = charts[f"The loss of {label}"]
        assert [curve.name for curve in chart.curves] == [label, f"{label} seed 1"]
        assert [list(curve.y) for curve in chart.curves] == [[0.75, 0.75]] * 2
        assert {curve.key for curve in chart.curves} == {(label, "student")}
    assert {curve.key for curve in charts["Learning the data"].curves} == {
        ("alone", "student"),
        ("soft", "student"),
        ("warm", "student"),
    }


def test_metrics_without_the_weighted_loss_are_drawn_by_their_parts(tmp_path: Path) -> None:
    compared = _compared(tmp_path)
    old = {key: value for key, value in _SOFT.items() if "<" in key}
    _write(compared, tmp_path, {"alone": {"loss/student<labels": 3.0}, "soft": old, "warm": old})
    titles = [chart.title for chart in charts_of(compared, tmp_path)]
    assert titles == ["Learning the data", "Learning the teacher's probabilities"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, {}),
        ({"chat_template": None, "date": None}, {}),
        ({"chat_template": "ab12", "date": None}, {"Chat template": "ab12"}),
        ({"chat_template": "ab12", "date": "2026-01-01"}, {"Chat template": "ab12", "Template date": "2026-01-01"}),
    ],
)
def test_the_template_and_its_date_are_said_where_there_are_any(data: dict[str, str], said: dict[str, str]) -> None:
    assert template_said(data) == said
