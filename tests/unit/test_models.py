from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import InputError, RecipeError, under
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate
from limbeck.models.load import load_model, weights_fingerprint, with_lora
from limbeck.models.proof import prove
from limbeck.models.tokenizer import require_equal_maps, token_map_fingerprint, train_tokenizer, vocabulary_size
from limbeck.recipe import ConfigModel, Lora, PathModel

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8},  # soft-capped logits
    "gemma3_text": {"head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "cohere": {},  # scaled logits
    "granite": {"logits_scaling": 4.0},
    "phi3": {},
    "gpt2": {},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_hidden_states_and_head_make_the_models_own_logits(kind: str, tokenizer: Any) -> None:
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **ARCHITECTURES[kind],
    }
    if kind != "gpt2":
        config["intermediate_size"] = 48
    lm = load_model(ConfigModel(config=config), tokenizer, seq_len=16)
    lm.model.eval()
    ids = torch.randint(0, lm.vocab_size, (2, 9))
    positions = torch.arange(9).expand(2, 9)
    head = lm.head()
    logits = head.scale * torch.nn.functional.linear(lm.hidden(ids, positions), head.weight_VD, head.bias_V)
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    torch.testing.assert_close(logits, lm.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert lm.packs


def test_a_model_that_does_something_else_to_its_logits_is_refused(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm()
    forward = lm.model.forward
    lm.model.forward = lambda **kw: (lambda out: (setattr(out, "logits", out.logits * 3), out)[1])(forward(**kw))
    with pytest.raises(RecipeError, match="not one linear head"):
        prove(lm)


def test_a_model_with_memory_does_not_pack(tokenizer: Any) -> None:
    config = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1}
    assert not load_model(ConfigModel(config=config), tokenizer).packs


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"model_type": "lama"}, "student.config.model_type", "`llama`"),
        ({"hiden_size": 32}, "student.config.hiden_size", "`hidden_size`"),
        ({"vocab_size": 10}, "student.config.vocab_size", "Leave it out"),
        ({"hidden_size": 30, "num_attention_heads": 7}, "student.config", "make no model"),
        ({"max_position_embeddings": 16}, "student", "seq_len: 16"),
    ],
)
def test_impossible_configs(change: dict[str, Any], key: str, says: str, llama: dict[str, Any], tokenizer: Any) -> None:
    with pytest.raises(RecipeError) as caught, under("student"):
        load_model(ConfigModel(config={**llama, **change}), tokenizer, seq_len=32)
    assert key in caught.value.line()
    assert says in caught.value.line()
    assert "\n" not in caught.value.line()


def test_folders_that_are_no_models(tmp_path: Path, tokenizer: Any, teacher_folder: Path) -> None:
    def line(path: Path) -> str:
        with pytest.raises(RecipeError) as caught:
            load_model(PathModel(path=str(path)), tokenizer)
        return caught.value.line()

    assert "no weights" in line(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickled" in line(tmp_path)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text((teacher_folder / "config.json").read_text())
    (torn / "model.safetensors").write_bytes((teacher_folder / "model.safetensors").read_bytes()[:5000])
    assert "cannot be loaded" in line(torn)
    assert "is a file" in line(teacher_folder / "config.json")


def test_weights_that_do_not_fit_their_config(tmp_path: Path, tokenizer: Any, teacher_folder: Path) -> None:
    import json
    import shutil

    shutil.copytree(teacher_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(RecipeError, match=r"lack model\.layers\.2"):
        load_model(PathModel(path=str(tmp_path / "m")), tokenizer)


def test_a_seed_makes_the_model(make_lm: Callable[..., CausalLM]) -> None:
    assert weights_fingerprint(make_lm(3).model) == weights_fingerprint(make_lm(3).model)
    assert weights_fingerprint(make_lm(3).model) != weights_fingerprint(make_lm(4).model)


def test_adapters_train_and_the_head_does_not(make_lm: Callable[..., CausalLM]) -> None:
    bare = make_lm()
    size = bare.n_parameters()
    lm = with_lora(bare, Lora(rank=4), seed=0)
    trainable = {name for name, p in lm.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not lm.head().weight_VD.requires_grad
    assert lm.n_parameters() == size
    with pytest.raises(RecipeError, match=r"student\.lora\.targets"), under("student.lora"):
        with_lora(make_lm(), Lora(targets=("nothing",)), seed=0)


def test_vocabularies_are_compared_by_their_maps(tokenizer: Any, texts: list[str]) -> None:
    same = train_tokenizer(texts, 320)
    require_equal_maps(tokenizer, same)
    assert token_map_fingerprint(tokenizer) == token_map_fingerprint(same)
    other = train_tokenizer(texts, 300)
    with pytest.raises(RecipeError, match=r"student\.path: its vocabulary \(300 tokens\)"), under("student.path"):
        require_equal_maps(tokenizer, other)


def test_a_trained_tokenizer_loses_nothing(tokenizer: Any) -> None:
    for text in ("the cat", "größer 猫 🐈 \x00\t ", "a  b\r\n"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert vocabulary_size(tokenizer) == 320


def test_writing_is_seeded_and_batches_change_nothing_when_greedy(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(seq_len=64)
    prompts = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
    greedy = Sampling(6, temperature=0)
    together = dict(generate(lm, prompts, greedy, 4))
    assert together == dict(generate(lm, prompts, greedy, 1))
    assert set(together) == {0, 1, 2, 3}
    drawn = Sampling(6, temperature=1.0, seed=3)
    assert dict(generate(lm, prompts, drawn, 2)) == dict(generate(lm, prompts, drawn, 2))
    assert dict(generate(lm, prompts, drawn, 2)) != dict(generate(lm, prompts, Sampling(6, seed=4), 2))


def test_a_text_goes_on_alike_where_others_have_ended(make_lm: Callable[..., CausalLM]) -> None:
    """Rows that ended are left behind; the rest are read again with what they have, to the same text."""
    lm = make_lm(seq_len=64)
    with torch.no_grad():
        for matrix in lm.model.parameters():
            matrix.mul_(20 if matrix.dim() > 1 else 1)  # a restless model: texts that differ and do not repeat
    prompts = [[i, i + 1, i + 2] for i in range(5, 37)]
    whole = dict(generate(lm, prompts, Sampling(24, temperature=0, stop=False), 32))
    marks = sorted({answer[i % 20] for i, answer in whole.items()})[:6]
    lm.end_ids = lambda: marks  # type: ignore[method-assign]
    stopped = dict(generate(lm, prompts, Sampling(24, temperature=0), 32))
    lengths = set()
    for i, answer in whole.items():
        cut = next((at + 1 for at, token in enumerate(answer) if token in marks), 24)
        assert stopped[i] == answer[:cut]
        lengths.add(cut)
    assert len(lengths) > 3
    assert dict(generate(lm, prompts, Sampling(24, temperature=0), 1)) == stopped


def test_padding_of_the_vocabulary_is_never_written(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(vocab_size=4000)
    answers = dict(generate(lm, [[5, 6]] * 8, Sampling(12, temperature=5.0), 8))
    assert max(i for answer in answers.values() for i in answer) < lm.vocab_size


def test_the_models_own_generation_file_is_not_asked(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(seq_len=64)
    greedy = Sampling(12, temperature=0)
    before = dict(generate(lm, [[5, 6, 7]], greedy, 1))
    lm.core.generation_config.no_repeat_ngram_size = 1
    lm.core.generation_config.suppress_tokens = before[0]
    assert dict(generate(lm, [[5, 6, 7]], greedy, 1)) == before
    assert lm.core.generation_config.no_repeat_ngram_size == 1


def test_no_text_grows_beyond_what_the_model_reads(make_lm: Callable[..., CausalLM]) -> None:
    lm = make_lm(max_position_embeddings=16)
    answers = dict(generate(lm, [[5] * 10], Sampling(50, temperature=0), 1))
    assert len(answers[0]) <= 6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_of_nan_writes_nothing(make_lm: Callable[..., CausalLM], temperature: float) -> None:
    """Sampling would be a traceback of torch, the most probable token of NaN is the first."""
    lm = make_lm(tie_word_embeddings=False)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[7] = float("nan")
    assert dict(generate(lm, [[5, 6]], Sampling(3, temperature=0.0), 1)).keys() == {0}
    with pytest.raises(InputError, match="not finite while it writes"):
        list(generate(lm, [[5, 7]], Sampling(3, temperature=temperature), 1))
