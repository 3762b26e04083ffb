from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import RecipeError, under
from limbeck.models.restricted import KeptTokens
from limbeck.models.tokenizer import vocabulary_size
from limbeck.pruning.bpe import Bpe, template_ids
from limbeck.pruning.vocabulary import OTHER, choose_tokens, cut_tokenizer, cut_vocabulary
from tests.unit.cutting.conftest import KINDS, batch_of, check_lives, logits, make
from tests.unit.cutting.tokenizers import BUILDS, TEXTS, byte_level, sentencepiece


@cache
def teacher(build: str) -> Any:
    return BUILDS[build]()


@cache
def model_of(build: str, kind: str = "llama") -> Any:
    tokenizer = teacher(build)
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    return make(kind, num_hidden_layers=2, vocab_size=vocabulary_size(tokenizer) + 3, **ids)  # rows padded by three


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def back(tokenizer: Any, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def used(tokenizer: Any, texts: list[str]) -> Counter[int]:
    return Counter(i for text in texts for i in encode(tokenizer, text))


# ------------------------------------------------------------------------------------ tokenizers

SOME = st.lists(st.sampled_from([w for t in TEXTS for w in t.split(" ")]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize("build", BUILDS)
@given(kept=st.lists(SOME, min_size=1, max_size=4), other=st.one_of(SOME, st.text(max_size=30)), tail=st.booleans())
@settings(max_examples=60, deadline=None)
def test_kept_text_keeps_its_ids_and_no_text_is_lost(build: str, kept: list[str], other: str, tail: bool) -> None:
    """The promise, on any set of kept texts: their ids are the old ones renumbered, so are those of any other text
    that happens to need no dropped token, and every Unicode string comes back as the teacher's tokenizer gives it."""
    old = teacher(build)
    tokens = choose_tokens(model_of(build), old, used(old, kept), other=tail)
    new, to_student = cut_tokenizer(old, tokens), tokens.to_student()
    assert vocabulary_size(new) == tokens.size < vocabulary_size(old) + tail
    for text in [*kept, other]:
        before = torch.tensor(encode(old, text), dtype=torch.long)
        if torch.isin(before, tokens.ids_K).all():
            assert encode(new, text) == to_student[before].tolist(), text
        else:
            assert text == other
        assert back(new, text) == back(old, text)
        if build != "sentencepiece" or "▁" not in text:  # there ▁ and a space are one to the teacher as well
            assert back(new, text) == text


@pytest.mark.parametrize("build", BUILDS)
def test_the_parts_of_a_token_are_enough_to_make_it(build: str) -> None:
    """Each token alone with its parts and the bytes: the rebuilt tokenizer still makes it. Without them it does not."""
    old = teacher(build)
    bpe = Bpe.of(old)
    core = old.backend_tokenizer
    made = 0
    for token, i in bpe.raw["model"]["vocab"].items():
        text = core.decode([i], skip_special_tokens=False)
        if i in bpe.added.values() or core.encode(text, add_special_tokens=False).ids != [i]:
            continue  # half a character, or what no text makes
        ids = bpe.closure(bpe.bytes | set(old.all_special_ids) | {i})
        new = cut_tokenizer(old, KeptTokens(torch.tensor(sorted(ids)), vocabulary_size(old), None))
        assert new.backend_tokenizer.encode(text, add_special_tokens=False).ids == [sorted(ids).index(i)], token
        made += len(token) > 2
    assert made > 50
    if build == "ignore_merges":
        return  # there a whole word needs no parts
    long = max((t for t in bpe.raw["model"]["vocab"] if t not in bpe.added), key=len)
    bare = sorted(bpe.bytes | set(old.all_special_ids) | {bpe.vocab[long]})
    text = core.decode([bpe.vocab[long]])
    new = cut_tokenizer(old, KeptTokens(torch.tensor(bare), vocabulary_size(old), None))
    assert new.backend_tokenizer.encode(text, add_special_tokens=False).ids != [bare.index(bpe.vocab[long])]


@pytest.mark.parametrize("build", BUILDS)
def test_the_saved_tokenizer_is_the_same(build: str, tmp_path: Path) -> None:
    """Saved beside its model, loaded by AutoTokenizer: same ids, same special tokens, same template."""
    from transformers import AutoTokenizer

    old = teacher(build)
    cut = cut_vocabulary(model_of(build), old, used(old, TEXTS[:3]), other=True)
    cut.model.save_pretrained(tmp_path)
    cut.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "x" + OTHER + "y"]:
        assert encode(loaded, text) == encode(cut.tokenizer, text)
        assert back(loaded, text) == text
    for name, token in old.special_tokens_map.items():
        assert getattr(loaded, name) == token
    assert loaded.chat_template == old.chat_template
    assert loaded.convert_tokens_to_ids(OTHER) == cut.kept.other == len(loaded.get_vocab()) - 1


def test_what_is_always_kept() -> None:
    old = teacher("byte_level")
    tokens = choose_tokens(model_of("byte_level"), old, {})
    names = old.convert_ids_to_tokens(tokens.ids_K.tolist())
    assert {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unused>"} <= set(names)
    assert template_ids(old) <= set(tokens.ids_K.tolist())
    talk = [{"role": "user", "content": "\x07"}, {"role": "assistant", "content": "\x07"}]
    text = old.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    new = cut_tokenizer(old, tokens)
    assert new.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == text
    assert encode(new, text) == tokens.to_student()[encode(old, text)].tolist()
    fewer = choose_tokens(model_of("byte_level"), old, {}, added="used")
    assert set(tokens.ids_K.tolist()) - set(fewer.ids_K.tolist()) == {old.convert_tokens_to_ids("<unused>")}


def test_frequent_tokens_come_first() -> None:
    old = teacher("byte_level")
    counts = used(old, TEXTS)
    everything = choose_tokens(model_of("byte_level"), old, counts)
    least = choose_tokens(model_of("byte_level"), old, {}).size
    twice = set(choose_tokens(model_of("byte_level"), old, counts, min_count=2).ids_K.tolist())
    assert {i for i, n in counts.items() if n >= 2} <= twice
    assert twice < set(everything.ids_K.tolist())
    bpe = Bpe.of(old)
    for other in (False, True):
        for size in range(least + other, everything.size + 2, 7):
            tokens = choose_tokens(model_of("byte_level"), old, counts, size=size, other=other)
            assert tokens.size <= size
            kept = set(tokens.ids_K.tolist())
            assert bpe.closure(kept) == kept
            missing = [i for i in counts if i not in kept]
            assert all(tokens.size + len(bpe.closure([i]) - kept) > size for i in missing), "there was room"
    must = set(choose_tokens(model_of("byte_level"), old, {}).ids_K.tolist())
    first, second = [i for i, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if i not in must][:2]
    room = len(must | bpe.closure([first]))
    kept = set(choose_tokens(model_of("byte_level"), old, counts, size=room).ids_K.tolist())
    assert first in kept
    assert second not in kept or second in bpe.closure([first])


# ---------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [False, True])
def test_the_model_is_the_teacher_at_the_kept_tokens(kind: str, other: bool, tmp_path: Path) -> None:
    old, model = teacher("byte_level"), model_of("byte_level", kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = cut_vocabulary(model, old, used(old, TEXTS[:2]), other=other)
    kept = cut.kept.ids_K
    ids = torch.tensor(encode(old, TEXTS[0]))[None]
    ours, theirs = logits(cut.model, cut.kept.to_student()[ids])[0], logits(model, ids)[0]
    torch.testing.assert_close(ours[:, : len(kept)], theirs[:, kept], rtol=0, atol=1e-5)

    restricted = cut.kept.restrict(theirs)
    assert restricted.shape == ours.shape == (ids.shape[1], cut.kept.size)
    p = theirs[:, : cut.kept.teacher_size].softmax(-1)  # padding rows are nobody's tokens
    if other:
        torch.testing.assert_close(restricted.softmax(-1)[:, :-1], p[:, kept], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(restricted.softmax(-1)[:, -1], p[:, cut.kept.dropped].sum(-1), rtol=1e-4, atol=1e-7)
    # the loss on kept text is the uncut model's with its softmax restricted
    labels = cut.kept.to_student()[ids[0, 1:]]
    losses = [torch.nn.functional.cross_entropy(x[:-1, : len(kept)], labels) for x in (ours, cut.kept.restrict(theirs))]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)

    tied = model.config.tie_word_embeddings
    assert (cut.model.get_input_embeddings().weight is cut.model.get_output_embeddings().weight) == tied
    assert cut.model.config.vocab_size == cut.kept.size == vocabulary_size(cut.tokenizer)
    new_id = cut.kept.to_student()
    for config in (cut.model.config, cut.model.generation_config):
        assert config.eos_token_id == new_id[old.eos_token_id] == cut.tokenizer.eos_token_id
        assert config.pad_token_id == new_id[old.pad_token_id] == cut.tokenizer.pad_token_id
    check_lives(cut.model, tmp_path, torch.stack([cut.kept.to_student()[ids[0, :12]]] * 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_ids_in_lists_follow_too() -> None:
    old = teacher("byte_level")
    model = make("llama", num_hidden_layers=1, vocab_size=vocabulary_size(old))
    unused = old.convert_tokens_to_ids("<unused>")
    model.config.eos_token_id = model.generation_config.eos_token_id = [old.eos_token_id, unused]
    model.config.unk_token_id = 7
    dropped = choose_tokens(model, old, {}).dropped[0].item()
    model.generation_config.suppress_tokens = [unused, dropped]
    cut = cut_vocabulary(model, old, {}, other=True, added="used")
    new_id = cut.kept.to_student()
    for config in (cut.model.config, cut.model.generation_config):
        assert config.eos_token_id == [new_id[old.eos_token_id], new_id[unused]]
    assert cut.model.config.unk_token_id == new_id[7]
    assert cut.model.generation_config.suppress_tokens == [new_id[unused], cut.kept.other]


def test_generation_never_says_other() -> None:
    old, model = teacher("byte_level"), model_of("byte_level")
    cut = cut_vocabulary(model, old, used(old, TEXTS[:1]), other=True)
    with torch.no_grad():  # make it the likeliest token of all
        weight = cut.model.lm_head.weight
        hidden = cut.model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
        weight[cut.kept.other] = 100 * hidden / hidden.norm()
    start = torch.tensor([[5, 6, 7]])
    assert logits(cut.model, start)[0, -1].argmax() == cut.kept.other
    assert cut.kept.other not in cut.model.generate(start, max_new_tokens=8, do_sample=False)[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("softcap", [None, 6.0])
def test_other_starts_as_the_mass_of_the_dropped(kind: str, softcap: float | None) -> None:
    """Calibrated, its logit is nearer to the log of the dropped tokens' mass on text it was not fitted to.

    A random toy is the hard case: its hidden states share no direction that could carry a constant.
    """
    if softcap and kind != "gemma3_text":
        pytest.skip("only Gemma caps its logits")
    old = teacher("byte_level")
    extra = {"final_logit_softcapping": softcap} if kind == "gemma3_text" else {}
    model = make(kind, num_hidden_layers=2, vocab_size=vocabulary_size(old), **extra)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(0, vocabulary_size(old), (40, 24), generator=generator)
    counts = used(old, TEXTS[:2])
    plain = cut_vocabulary(model, old, counts, other=True)
    fitted = cut_vocabulary(model, old, counts, other=True, calibration=[batch_of(texts[:32], [24] * 20 + [9] * 12)])
    kept_text = plain.kept.ids_K[texts[32:] % len(plain.kept.ids_K)]
    mass = plain.kept.restrict(logits(model, kept_text).flatten(0, 1))[:, -1]
    student = plain.kept.to_student()[kept_text]
    errors = [(logits(c.model, student).flatten(0, 1)[:, -1] - mass).abs().mean() for c in (plain, fitted)]
    assert errors[1] < 0.75 * errors[0]
    if not model.config.tie_word_embeddings:
        row = fitted.model.get_input_embeddings().weight[-1]
        mean = model.get_input_embeddings().weight[fitted.kept.dropped].mean(0)
        torch.testing.assert_close(row, mean)


# ---------------------------------------------------------------------------------------- errors


def unigram() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)))


def without_bytes() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])))


def suffixed() -> Any:
    tokenizer = byte_level()
    from tokenizers import Tokenizer

    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["model"]["end_of_word_suffix"] = "</w>"
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(raw))
    return tokenizer


def with_other() -> Any:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": [OTHER]})
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "counts", "options", "line"),
    [
        (unigram, {}, {}, "student.vocabulary: limbeck cannot cut a vocabulary of the kind Unigram"),
        (without_bytes, {}, {}, "the vocabulary has no tokens for bytes"),
        (suffixed, {}, {}, "a byte-pair vocabulary with `end_of_word_suffix`"),
        (with_other, {}, {"other": True}, "the teacher has a token <|other|>: its own vocabulary was cut"),
        (byte_level, {9999: 3}, {}, "the data uses token 9999, which this tokenizer (420 tokens) does not have"),
        (byte_level, {}, {"size": 100}, "student.vocabulary.size: got 100, but"),
        (sentencepiece, {}, {"size": 263, "other": True}, "got 263, but 264 tokens have to be kept"),
    ],
)
def test_bad_input_is_one_line(
    tokenizer: Callable[[], Any], counts: dict[int, int], options: dict[str, Any], line: str
) -> None:
    made = tokenizer()
    model = make("llama", num_hidden_layers=1, vocab_size=max(vocabulary_size(made), 101), bos_token_id=None)
    with pytest.raises(RecipeError) as caught, under("student.vocabulary"):
        cut_vocabulary(model, made, counts, **options)
    assert line in caught.value.line()
    assert caught.value.line().startswith("student.vocabulary")


def test_an_unknown_architecture_is_named() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=2, vocab_size=500))
    says = r"^student.vocabulary: limbeck cannot cut the architecture `gpt2`"
    with pytest.raises(RecipeError, match=says), under("student.vocabulary"):
        cut_vocabulary(gpt2, teacher("byte_level"), {})


def test_tables_without_other() -> None:
    kept = KeptTokens(torch.tensor([0, 2, 3]), 5, None)
    assert kept.to_student().tolist() == [0, -100, 1, 2, -100]
    assert kept.dropped.tolist() == [1, 4]
    x = torch.randn(4, 7)
    assert torch.equal(kept.restrict(x), x[:, [0, 2, 3]])
    tail: Tensor = KeptTokens(torch.tensor([0, 2, 3]), 5, 3).restrict(x)
    torch.testing.assert_close(tail[:, 3], x[:, [1, 4]].exp().sum(-1).log())
