"""The page: whole, well formed, self-contained, and deaf to whatever a model wrote."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from limbeck.report.html import LONGEST_TEXT, _columns, render
from limbeck.report.model import Estimate, Fact, ReportData, Row, Sample
from limbeck.report.style import STYLE

from . import example

_VOID = {"meta", "br", "hr", "link", "img", "input", "wbr"}


class _Page(HTMLParser):
    """Checks that tags balance; keeps the text, the tags and the ids."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def _read(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def _svgs(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, re.S)


def _bare(name: str = "soft", **fields: object) -> Row:
    return Row(name, "student", 10, 20, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page() -> str:
    return render(example.data())


def test_is_well_formed_with_every_section(page: str) -> None:
    parsed = _read(page)
    for heading in (
        "Results",
        "How near they came",
        "While training",
        "Size and speed",
        "In their own words",
    ):
        assert heading in parsed.text
    for words in ("What each number means", "Provenance", "Resolved recipe", "limbeck report runs/demo"):
        assert words in parsed.text
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labelled = [value for name, value in parsed.attributes if name.startswith("aria-labelledby")]
    assert labelled
    assert all(part in ids for value in labelled if value for part in value.split())


def test_every_drawing_is_xml_with_title_and_description(page: str) -> None:
    drawings = [ElementTree.fromstring(svg) for svg in _svgs(page)]
    assert len(drawings) == 6
    for drawing in drawings:
        assert drawing.find("title") is not None
        assert drawing.find("desc") is not None


def test_refers_to_nothing_outside(page: str) -> None:
    assert not re.search(r"""\b(?:src|href|srcset|action|data|poster)\s*=""", page)
    assert not re.search(r"url\(|@import|<script|<link|<iframe|javascript:|\son\w+=", page, re.I)
    assert not re.search(r"(?:https?:)?//[a-z]", page, re.I)
    policies = [value for name, value in _read(page).attributes if name == "content" and value]
    assert any("default-src 'none'" in policy for policy in policies)


def test_is_small(page: str) -> None:
    assert len(page.encode()) < 100_000


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("</style></pre><b>", "</style></pre><b>"),
        ("\"'>&amp;<img src=x onerror=alert(1)>", "\"'>&amp;<img src=x onerror=alert(1)>"),
        ("a\u202eb", "a\u27e6U+202E\u27e7b"),
        ("\x00\x1b[31m\x7f", "\u27e6U+0000\u27e7\u27e6U+001B\u27e7[31m\u27e6U+007F\u27e7"),
        ("hi\U000e0041dden\u200b", "hi\u27e6U+E0041\u27e7dden\u27e6U+200B\u27e7"),
        ("half \ud83d", "half \ufffd"),
        ("\u0645\u0631\u062d\u0628\u0627", "\u0645\u0631\u062d\u0628\u0627"),
        ("x" * 1200, "x" * 1200),
    ],
)
def test_text_from_anywhere_stays_text(text: str, seen: str) -> None:
    honest = _read(render(example.data()))
    data = dataclasses.replace(
        example.data(),
        title=text,
        verdict=f"Said: {text}",
        warnings=[text],
        rows=[*example.rows(), _bare(text, bits_per_byte=Estimate(1.7, 1.6, 1.8), note=text)],
        samples=[Sample(text, {("soft", ""): text, (text, ""): text}, reference=text)],
        provenance={text: [Fact(text, text)]},
        recipe_yaml=text,
        command=text,
        created=text,
    )
    page = render(data)
    page.encode("utf-8")
    parsed = _read(page)
    assert seen in parsed.text
    assert set(parsed.tags) == set(honest.tags)
    for svg in _svgs(page):
        ElementTree.fromstring(svg)


def test_long_text_is_cut_and_counted() -> None:
    text = "y" * (LONGEST_TEXT + 1234)
    parsed = _read(render(dataclasses.replace(example.data(), samples=[Sample("p", {("soft", ""): text})])))
    assert "… and 1,234 more characters" in parsed.text
    assert "y" * (LONGEST_TEXT + 1) not in parsed.text


def test_an_empty_continuation_is_said_to_be_empty() -> None:
    parsed = _read(
        render(dataclasses.replace(example.data(), samples=[Sample("p", {("soft", ""): "", ("co", ""): "\n "})]))
    )
    assert "nothing but blanks" in parsed.text


@pytest.mark.parametrize(
    "data",
    [
        ReportData("empty", []),
        ReportData("one student", [_bare()]),
        ReportData("nan", [_bare(bits_per_byte=Estimate(float("nan")), kl=Estimate(float("inf"), 0, 1))]),
        ReportData("no control", [row for row in example.rows() if row.role != "control"]),
        ReportData("no teacher", [row for row in example.rows() if row.role != "teacher"]),
        ReportData("twice", [_bare(), _bare()], created="yesterday"),
        ReportData(
            "nothing",
            [Row("t", "teacher", 0, 0, tokens_per_second=Estimate(0.0)), _bare(tokens_per_second=Estimate(0.0))],
        ),
    ],
    ids=lambda data: data.title,
)
def test_missing_parts_leave_a_whole_page(data: ReportData) -> None:
    page = render(data)
    parsed = _read(page)
    assert "nan" not in parsed.text.replace(data.title, "")
    for svg in _svgs(page):
        ElementTree.fromstring(svg)


def test_the_best_student_is_marked_and_intervals_are_shown(page: str) -> None:
    row = re.search(r'<tr[^>]*class="best".*?</tr>', page, re.S)
    assert row is not None
    assert "best student" in row[0]
    assert "1.599–1.657" in row[0]
    assert "−0.030 to −0.023" in row[0]


def test_a_given_verdict_is_shown_as_it_is() -> None:
    parsed = _read(render(dataclasses.replace(example.data(), verdict="It `went` well.")))
    assert "It went well." in parsed.text
    assert "best student: " not in parsed.text


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_words_can_be_read(theme: str) -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme:dark)")
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", light if theme == "light" else dark.split("*{")[0]))
    words = ["ink", "soft", "muted", "accent", "good", "bad", "warn", "ct", "cc", "c0", "c1", "c2", "c3", "c4", "c5"]
    for word in words:
        for ground in ("paper", "best"):
            low, high = sorted(_luminance(colours[name]) for name in (word, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (word, ground)


def test_the_speed_chart_says_what_must_be_known_of_its_figures() -> None:
    text = _read(render(dataclasses.replace(example.data(), speed_note="Each was loaded anew."))).text
    assert "Each was loaded anew." in text
    assert "No speed-up is given" not in text
    rows = [
        dataclasses.replace(row, tokens_per_second=Estimate(900.0, 880.0, 920.0)) if row.name == "co" else row
        for row in example.rows()
    ]
    page = _read(render(dataclasses.replace(example.data(), rows=rows, speed_note="Each was loaded anew."))).text
    assert re.search(r"No speed-up is given: .* Each was loaded anew\.", page)
    assert "× faster" not in page


def test_an_only_student_is_called_best_of_nothing() -> None:
    teacher, control, soft, _, co = example.rows()
    unclear = _read(render(dataclasses.replace(example.data(), rows=[teacher, control, co]))).text
    assert "student, not told apart from its control" in unclear
    assert "best student" not in unclear
    better = _read(render(dataclasses.replace(example.data(), rows=[teacher, control, soft]))).text
    assert "student, beats its control" in better
    assert "best student" not in better


@pytest.mark.parametrize("count", range(1, 13))
def test_no_answer_stands_alone_below_others(count: int) -> None:
    for columns in (int(class_[1:]) for class_ in _columns(count)):
        assert columns == 1 or count % columns != 1
        assert f".n{columns}{{" in STYLE or columns == 1
