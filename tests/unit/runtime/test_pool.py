"""Models are loaded once: what is shared stays as it is, what is private never gets into the shared part."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import RecipeError, under
from limbeck.models import load
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.save import save_model
from limbeck.models.load import load_model, weights_fingerprint, with_lora
from limbeck.models.restricted import RestrictedModel
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pruning.vocabulary import choose_tokens, cut_tokenizer
from limbeck.recipe import Lora, PathModel
from limbeck.runtime.pool import ModelPool, ModelRef
from limbeck.runtime.world import World
from limbeck.signals.live import LiveTeacher
from limbeck.training.loss_graph import LossGraph, LossTerm

Make = Callable[..., CausalLM]


@pytest.fixture
def folder(make_lm: Make, tmp_path: Path) -> Path:
    save_model(make_lm(1), tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def ref(folder: Path) -> ModelRef:
    return ModelRef(str(folder))


def storages(lm: CausalLM) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in lm.model.named_parameters()}


def states(lm: CausalLM) -> torch.Tensor:
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        return lm.hidden(ids, torch.arange(8)[None])


# ------------------------------------------------------------------------------- sharing


def test_a_frozen_model_is_loaded_and_proven_once(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    proven: list[CausalLM] = []
    prove = load.prove

    def noted(lm: CausalLM, *, fresh: bool) -> None:
        proven.append(lm)
        prove(lm, fresh=fresh)

    monkeypatch.setattr(load, "prove", noted)
    pool = ModelPool()
    assert ref not in pool
    with pool.lease(ref) as first, pool.lease(ref) as second:
        assert storages(first) == storages(second)
        assert first is not second
        assert first.packs
        assert second.packs
        assert not any(p.requires_grad for p in first.parameters())
        assert not first.training
    with pool.lease(ref) as third:
        assert storages(third) == storages(first)
    assert ref in pool
    assert pool.loads == {ref.path: 1}
    assert len(proven) == 1


def test_a_lease_gives_what_loading_gives(ref: ModelRef, folder: Path) -> None:
    loaded = load_model(PathModel(path=ref.path), load_tokenizer(ref.path))
    pool = ModelPool()
    with pool.lease(ref) as lm, pool.lease(ref, trainable=True) as private:
        for found in (lm, private):
            assert weights_fingerprint(found.model) == weights_fingerprint(loaded.model)
            assert found.traits == loaded.traits
            assert found.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
            assert torch.equal(states(found), states(loaded))


def test_one_folder_has_one_model_however_it_is_written(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ModelPool()
    monkeypatch.chdir(Path(ref.path).parent)
    with pool.lease(ref) as absolute, pool.lease(ModelRef("./one")) as relative:
        assert storages(absolute) == storages(relative)
    assert pool.loads.total() == 1


def test_other_references_are_other_models(ref: ModelRef) -> None:
    pool = ModelPool()
    half = ModelRef.of(PathModel(path=ref.path, dtype="bfloat16"))
    with pool.lease(ref) as whole, pool.lease(half) as low:
        assert whole.core.dtype == torch.float32
        assert low.core.dtype == torch.bfloat16
    assert pool.loads == {ref.path: 2}


def test_a_shared_model_is_put_back_into_evaluation_mode(ref: ModelRef) -> None:
    pool = ModelPool()
    with pool.lease(ref) as lm:
        lm.train()
    with pool.lease(ref) as lm:
        assert not any(module.training for module in lm.modules())


def test_each_lease_has_its_own_tokenizer(ref: ModelRef, tokenizer: Any) -> None:
    other = load_tokenizer(ref.path)
    other.eos_token = "a"
    pool = ModelPool()
    with pool.lease(ref, tokenizer=other) as lm, pool.lease(ref) as own:
        assert lm.tokenizer is other
        assert lm.end_ids() == [other.convert_tokens_to_ids("a")] != own.end_ids()
    assert pool.loads.total() == 1


def test_a_smaller_vocabulary_is_a_view(ref: ModelRef, tokenizer: Any) -> None:
    pool = ModelPool()
    with pool.lease(ref) as whole:
        kept = choose_tokens(whole.model, tokenizer, dict.fromkeys(range(300), 1), other=True)
        small = cut_tokenizer(tokenizer, kept)
        small.eos_token = small.convert_ids_to_tokens(7)
        with pool.lease(ref, tokenizer=small, kept=kept) as view:
            assert isinstance(view, RestrictedModel)
            assert storages(view) == storages(whole)
            assert view.packs
            assert view.shared
            assert view.own_vocab_size == 320
            assert view.own_tokenizer.eos_token == small.eos_token, "where it stops is the run's decision"
            assert whole.tokenizer.eos_token != small.eos_token
    assert pool.loads.total() == 1
    with pytest.raises(ValueError, match="tokenizer of its own"), pool.lease(ref, kept=kept):
        pass


# ------------------------------------------------------------------------------- private copies


@pytest.mark.parametrize("loaded_before", [True, False])
def test_what_is_trained_is_nobody_elses(ref: ModelRef, loaded_before: bool) -> None:
    pool = ModelPool()
    with ExitStack() as stack:
        if loaded_before:
            stack.enter_context(pool.lease(ref))
        private = stack.enter_context(pool.lease(ref, trainable=True))
        assert all(p.requires_grad for p in private.parameters())
        assert not private.shared
        assert private.packs
        assert (ref in pool) == loaded_before
        with torch.no_grad():
            for p in private.parameters():
                p.zero_()
        with_lora(private, Lora(rank=2), seed=0)
    with pool.lease(ref) as shared:
        assert states(shared).any()
        assert not any("lora" in name for name, _ in shared.named_parameters())
        assert not set(storages(shared).values()) & set(storages(private).values())
    assert pool.loads == {ref.path: 1 if loaded_before else 2}


def test_a_private_copy_trains_what_a_loaded_model_would(ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that an architecture keeps fixed stays so."""
    from_path = load.from_path

    def with_fixed(spec: PathModel) -> Any:
        model = from_path(spec)
        model.model.norm.weight.requires_grad_(False)
        return model

    monkeypatch.setattr(load, "from_path", with_fixed)
    pool = ModelPool()
    with pool.lease(ref, trainable=True) as loaded:
        wanted = {name: p.requires_grad for name, p in loaded.model.named_parameters()}
    with pool.lease(ref), pool.lease(ref, trainable=True) as copied:
        assert {name: p.requires_grad for name, p in copied.model.named_parameters()} == wanted
    assert list(wanted.values()).count(False) == 1
    assert pool.loads.total() == 2


def test_a_shared_model_refuses_to_be_changed(ref: ModelRef) -> None:
    pool = ModelPool()
    with pool.lease(ref) as lm, pool.lease(ref, trainable=True) as student:
        with pytest.raises(RuntimeError, match="shared"):
            with_lora(lm, Lora(rank=2), seed=0)
        with pytest.raises(RuntimeError, match="`rounded`"):
            LossGraph(
                {"student": student}, [LossTerm("student", "teacher")], {"teacher": LiveTeacher(lm, "bf16")}, "bf16"
            )
        assert {p.dtype for p in lm.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize("first", ["whole", "rounded"])
def test_a_rounded_model_is_another_one(first: str, ref: ModelRef) -> None:
    rounded = ModelRef(ref.path, rounded=True)
    by_hand = load_model(PathModel(path=ref.path), load_tokenizer(ref.path))
    expected = states(by_hand)
    pool = ModelPool()
    with pool.lease(ref if first == "whole" else rounded):
        pass
    with pool.lease(rounded) as low, pool.lease(ref) as whole:
        assert torch.equal(states(whole), expected)
        by_hand.hold_in_bfloat16()
        assert weights_fingerprint(low.model) == weights_fingerprint(by_hand.model)
        with low.autocast("bf16"):
            assert torch.equal(states(low), states(by_hand))
        low.hold_in_bfloat16()  # it is already
        assert {p.dtype for p in whole.parameters()} == {torch.float32}
        linear = {id(p) for layer in low.linear_layers() for p in layer.parameters()}
        mine, theirs = storages(low), storages(whole)
        for name, p in low.model.named_parameters():
            assert (mine[name] == theirs[name]) == (id(p) not in linear), name
    assert pool.loads == {ref.path: 1}
    assert rounded in pool


def test_what_is_trained_is_not_rounded(ref: ModelRef) -> None:
    rounded = ModelRef(ref.path, rounded=True)
    with pytest.raises(ValueError, match="not rounded"), ModelPool().lease(rounded, trainable=True):
        pass


# ------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Tight(World):
    """A machine with memory for a number of models beside those that a pool holds."""

    memory: int = 0
    pools: tuple[ModelPool, ...] | list[ModelPool] = ()

    def free_memory(self) -> int:
        return self.memory - sum(pool.held_bytes() for pool in self.pools)


def three(make_lm: Make, tmp_path: Path) -> list[ModelRef]:
    for i in range(3):
        save_model(make_lm(i), tmp_path / str(i))
    return [ModelRef(str(tmp_path / str(i))) for i in range(3)]


@pytest.mark.parametrize("by", ["budget", "memory"])
def test_the_least_recently_used_goes_first(by: str, make_lm: Make, tmp_path: Path) -> None:
    refs = three(make_lm, tmp_path)
    with ModelPool().lease(refs[0]) as lm:
        size = sum(t.nbytes for t in [*lm.model.parameters(), *lm.model.buffers()])
    memory = int(2.5 * size)
    if by == "budget":
        pool = ModelPool(budget=memory)
    else:
        pools: list[ModelPool] = []
        pool = ModelPool(Tight(0, 1, torch.device("cpu"), memory, pools))
        pools.append(pool)
    for i in (0, 1, 0, 2):
        with pool.lease(refs[i]):
            pass
    assert [ref in pool for ref in refs] == [True, False, True]
    with pool.lease(refs[0]), pool.lease(refs[1]):
        assert [ref in pool for ref in refs] == [True, True, False]
    assert pool.loads == {refs[0].path: 1, refs[1].path: 2, refs[2].path: 1}
    with pool.lease(refs[0]), pool.lease(refs[0], trainable=True):
        assert [ref in pool for ref in refs] == [True, False, False], "the copy took the place of the other"
    assert pool.held_bytes() <= memory


def test_what_is_leased_stays_whatever_memory_asks(make_lm: Make, tmp_path: Path) -> None:
    refs = three(make_lm, tmp_path)
    pool = ModelPool(budget=1)
    with pool.lease(refs[0]) as first:
        expected = states(first)
        with pool.lease(refs[1]):
            assert refs[0] in pool
            pool.clear()
            assert refs[0] in pool
            with pool.lease(refs[0]) as again:
                assert torch.equal(states(again), expected)
    with pool.lease(refs[2]):
        assert [ref in pool for ref in refs] == [False, False, True]
    pool.clear()
    assert refs[2] not in pool
    assert pool.held_bytes() == 0


def test_a_rounded_copy_counts_only_what_is_its_own(ref: ModelRef) -> None:
    pool = ModelPool()
    with pool.lease(ref) as whole:
        alone = pool.held_bytes()
        with pool.lease(ModelRef(ref.path, rounded=True)):
            linear = sum(p.numel() for layer in whole.linear_layers() for p in layer.parameters())
            buffers = sum(b.nbytes for b in whole.model.buffers())
            assert pool.held_bytes() == alone + 2 * linear + buffers


def test_the_estimate_follows_the_dtype(make_lm: Make, tmp_path: Path) -> None:
    from limbeck.runtime.pool import _estimate

    lm = make_lm(1)
    save_model(lm, tmp_path / "half", "bfloat16")
    size = sum(p.nbytes for p in lm.model.parameters())
    for dtype, factor in (("bfloat16", 1), ("auto", 1), ("float32", 2)):
        estimate = _estimate(ModelRef(str(tmp_path / "half"), dtype=dtype))
        assert factor * size <= estimate < 1.2 * factor * size + 20_000
    assert _estimate(ModelRef("nobody/nothing")) == 0


# ------------------------------------------------------------------------------- files and errors


def test_rewritten_weights_are_read_anew(ref: ModelRef, folder: Path, make_lm: Make) -> None:
    pool = ModelPool()
    weights = folder / "model.safetensors"
    with pool.lease(ref) as old, pool.lease(ModelRef(ref.path, rounded=True)):
        before = states(old)
        stat = weights.stat()
        save_model(make_lm(2), folder)
        assert weights.stat().st_size == stat.st_size
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a clock that is too coarse to tell
        assert ref not in pool
        with pool.lease(ref) as new, pool.lease(ModelRef(ref.path, rounded=True)) as low:
            assert weights_fingerprint(new.model) == weights_fingerprint(make_lm(2).model)
            assert torch.equal(states(old), before)
            assert torch.equal(low.core.model.norm.weight, new.core.model.norm.weight)
            with pool.lease(ref, trainable=True) as private:
                assert weights_fingerprint(private.model) == weights_fingerprint(new.model)
    assert pool.loads == {ref.path: 2}
    assert pool.held_bytes() < 2 * weights.stat().st_size


@pytest.mark.parametrize("by", ["reference", "path"])
def test_forgetting(by: str, ref: ModelRef) -> None:
    pool = ModelPool()
    low = ModelRef(ref.path, rounded=True)
    with pool.lease(ref) as lm, pool.lease(low):
        pool.forget(ref if by == "reference" else ref.path)
        assert ref not in pool
        assert low not in pool
        assert states(lm).any()
    with pool.lease(ref):
        pass
    assert pool.loads == {ref.path: 2}


def test_an_exception_inside_a_lease_ends_it(make_lm: Make, tmp_path: Path) -> None:
    refs = three(make_lm, tmp_path)
    pool = ModelPool(budget=1)
    with pytest.raises(KeyError, match="inside"), pool.lease(refs[0]), pool.lease(refs[0], trainable=True):
        raise KeyError("inside")
    with pool.lease(refs[0]):
        pass
    assert pool.loads == {refs[0].path: 1}
    with pool.lease(refs[1]):
        assert refs[0] not in pool, "nobody has leased it any more"


def test_errors_are_those_of_loading(ref: ModelRef, folder: Path, tmp_path: Path) -> None:
    pool = ModelPool()

    def said(ref: ModelRef, **how: Any) -> str:
        with pytest.raises(RecipeError) as caught, under("teacher"), pool.lease(ref, **how):
            pass
        return caught.value.line()

    assert said(ModelRef(str(tmp_path / "nowhere"))).startswith("teacher.path: there is no folder")
    assert said(ref, seq_len=5000).startswith("teacher: data.seq_len is 5000, but this model reads")
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    (torn / "model.safetensors").write_bytes(b"")
    assert said(ModelRef(str(torn))).startswith(f"teacher.path: {torn} cannot be loaded")
    assert ModelRef(str(torn)) not in pool
    (torn / "model.safetensors").unlink()
    assert said(ModelRef(str(torn))).startswith(f"teacher.path: {torn} holds no weights")
    with pool.lease(ref):
        pass
    assert pool.loads == Counter(
        {
            ref.path: 1,
            str(torn): 2,
        }
    )
