"""What is proven and refused of a model when it is loaded, and that every token that is read learns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.commands.run import run
from limbeck.data.packing import Batch, Rows, collate
from limbeck.errors import InputError, LimbeckError, RecipeError, under
from limbeck.evaluation.gap import measure
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.save import save_model
from limbeck.models.folders.saved import stored_dtype
from limbeck.models.generate import Sampling, generate
from limbeck.models.load import load_model, prove_adapters, reinitialised, with_lora
from limbeck.models.proof import prove
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pipeline.build import check
from limbeck.pipeline.stages.corpus import check_ids
from limbeck.pipeline.stages.teacher import GivenTeacher
from limbeck.pruning.vocabulary import choose_tokens, cut_tokenizer
from limbeck.recipe import ConfigModel, Data, Lora, PathModel, parse_recipe
from limbeck.signals.live import LiveTeacher
from limbeck.training.loss_graph import LossGraph, LossTerm
from limbeck.training.metrics import read_metrics
from tests.architectures.cases import CASES
from tests.architectures.test_matrix import check as check_trial
from tests.architectures.trial import tried
from tests.unit.test_data import corpus_of

Make = Callable[..., CausalLM]


def of(kind: str, tokenizer: Any, **more: Any) -> CausalLM:
    config = {"model_type": kind, **CASES[kind], **more}
    return load_model(ConfigModel(config=config), tokenizer, seq_len=48)


def opening_batch() -> Batch:
    """Rows whose documents open with token 0, as the trained tokenizer's do."""
    documents = [([0, *range(5 * i + 1, 5 * i + 9)], [True] * 9) for i in range(6)]
    return collate([Rows(corpus_of(documents), 32, pack=True)[0]])


def edited(folder: Path, to: Path, **entries: Any) -> Path:
    """A copy of a model's folder with other entries in its config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **entries}))
    return to


def refused(path: Path | str, tokenizer: Any, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught, under("teacher"):
        load_model(PathModel(path=str(path), **more), tokenizer)
    assert caught.value.line().startswith("teacher")
    assert "\n" not in caught.value.line()
    return caught.value.line()


# ------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "llama4_text", "qwen3_moe", "bloom", "lfm2", "jamba", "gpt_oss"])
def test_architectures_of_every_sort(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    check_trial(tried(kind, CASES[kind], tokenizer, tmp_path))


def test_a_leak_that_fresh_weights_hide_is_found(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that starts at zero lets the neighbour in only after training."""
    from transformers.models.llama.modeling_llama import LlamaModel

    build, forward = LlamaModel.__init__, LlamaModel.forward

    def with_gate(self: Any, config: Any) -> None:
        build(self, config)
        self.gate = torch.nn.Parameter(torch.zeros(config.hidden_size))

    def leaking(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + self.gate * out.last_hidden_state.cumsum(1)
        return out

    monkeypatch.setattr(LlamaModel, "__init__", with_gate)
    monkeypatch.setattr(LlamaModel, "forward", leaking)
    lm = of("llama", tokenizer)
    assert not lm.packs
    assert not lm.model.model.gate.any(), "the proof left its own weights behind"


def test_the_proof_changes_nothing(make_lm: Make) -> None:
    lm = make_lm(model_type="mistral", sliding_window=4096)
    lm.model.train()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    prove(lm, fresh=True)
    assert lm.model.training
    assert lm.config.sliding_window == 4096
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("bloom", False)])
def test_low_precision_is_judged_exactly_too(kind: str, packs: bool, dtype: str, tokenizer: Any) -> None:
    spec = ConfigModel.model_validate({"config": {"model_type": kind, **CASES[kind]}, "dtype": dtype})
    assert load_model(spec, tokenizer, seq_len=48).packs == packs


def test_an_encoder_is_called_what_it_is(tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="BertLMHeadModel is not a causal language model"):
        of("bert", tokenizer)


# ------------------------------------------------------------------------------- every token learns


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen2", "opt", "phi3", "gpt2"])
def test_the_token_that_opens_documents_learns(kind: str, tokenizer: Any) -> None:
    """The tokenizer's BOS, EOS and padding are one token; transformers freezes the row of the padding at zero."""
    assert tokenizer.pad_token_id == tokenizer.bos_token_id == 0
    lm = of(kind, tokenizer, tie_word_embeddings=False)
    weight = lm.core.get_input_embeddings().weight
    others = weight[1:].norm(dim=1)
    assert others.min() * 0.5 < weight[0].norm() < others.max() * 1.5
    LossGraph({"student": lm}, [LossTerm("student")]).forward_backward(opening_batch(), {"student<labels": 1}, 0.0)
    assert weight.grad is not None
    assert weight.grad[0].any()
    assert lm.config.pad_token_id == 0


def test_the_opening_row_is_the_seeds_too(tokenizer: Any) -> None:
    def row(seed: int) -> torch.Tensor:
        spec = ConfigModel(config={"model_type": "llama", **CASES["llama"]})
        return load_model(spec, tokenizer, seed=seed).core.get_input_embeddings().weight[0].detach()

    assert torch.equal(row(1), row(1))
    assert not torch.equal(row(1), row(2))


def test_loaded_and_begun_anew_models_learn_it_too(teacher_folder: Path, tokenizer: Any) -> None:
    loaded = load_model(PathModel(path=str(teacher_folder)), tokenizer)
    assert loaded.config.pad_token_id == 0
    for lm in (loaded, reinitialised(loaded, 5)):
        weight = lm.core.get_input_embeddings().weight
        assert weight[0].any()
        batch = opening_batch()
        lm.hidden(batch.ids_BT, batch.positions_BT)[:, :3].sum().backward()
        assert weight.grad is not None
        assert weight.grad[0].any()


# ------------------------------------------------------------------------------- no code of a folder


def test_a_folder_runs_no_code_of_its_own(teacher_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("the user was asked")

    monkeypatch.setattr("builtins.input", asked)
    touched = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(touched)!r}).touch()\nclass Own: pass\n"
    mapped = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    for kind in ("own", "llama"):
        folder = edited(teacher_folder, tmp_path / kind, model_type=kind, auto_map=mapped)
        (folder / "own.py").write_text(code)
        named = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**named, "auto_map": mapped}))
        tokenizer = load_tokenizer(str(teacher_folder))
        if kind == "own":
            assert "only code of its own reads" in refused(folder, tokenizer)
        else:  # transformers has the class: the folder's is passed over
            assert load_model(PathModel(path=str(folder)), tokenizer).packs
            load_tokenizer(str(folder))
        assert not touched.exists()


@pytest.mark.parametrize("entry", ["attn_implementation", "experts_implementation"])
def test_a_config_names_no_kernel_of_the_hub(entry: str, teacher_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    folder = edited(teacher_folder, tmp_path / "m", **{entry: "somebody/kernel"})
    assert f"names 'somebody/kernel' as its {entry}" in refused(folder, tokenizer)


def test_an_architecture_that_transformers_does_not_know(teacher_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    said = refused(edited(teacher_folder, tmp_path / "m", model_type="lama9"), tokenizer)
    assert "`lama9`, which transformers does not know" in said


# ------------------------------------------------------------------------------- adapters


def adapter(base: Path, tokenizer: Any, folder: Path) -> CausalLM:
    """An adapter folder beside its base, and the model that it should give."""
    lm = with_lora(load_model(PathModel(path=str(base)), tokenizer), Lora(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    lm.model.peft_config["default"].base_model_name_or_path = str(base)
    lm.model.save_pretrained(folder)
    return lm


def given_key(path: str) -> Any:
    data = Data.model_validate({"corpus": [{"stdlib": "docstrings"}]})
    return GivenTeacher(spec=PathModel(path=path), data=data).key({})


def test_the_key_of_a_teacher_follows_its_files_and_an_adapters_base(
    teacher_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    base = tmp_path / "base"
    shutil.copytree(teacher_folder, base)
    adapter(base, tokenizer, tmp_path / "adapter")
    before = given_key(str(tmp_path / "adapter"))
    assert given_key(str(tmp_path / "adapter")) == before
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # the base is written anew, the adapter is not
    assert given_key(str(tmp_path / "adapter")) != before


def test_a_teacher_on_the_hub_has_a_key_before_it_is_downloaded() -> None:
    assert given_key("nobody/has-this") == given_key("nobody/has-this")


def test_an_adapter_is_merged_into_its_base(teacher_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    beside = adapter(teacher_folder, tokenizer, tmp_path / "adapter")
    own = load_tokenizer(str(tmp_path / "adapter"))  # that of its base
    merged = load_model(PathModel(path=str(tmp_path / "adapter")), own)
    assert not hasattr(merged.model, "peft_config")
    batch = opening_batch()
    with torch.no_grad(), beside.evaluating(), merged.evaluating():
        wanted, got = (lm.hidden(batch.ids_BT, batch.positions_BT) for lm in (beside, merged))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    bare = load_model(PathModel(path=str(teacher_folder)), own)
    with torch.no_grad():
        assert float((bare.hidden(batch.ids_BT, batch.positions_BT) - got).abs().max()) > 1e-2


def test_an_adapter_that_cannot_be_merged_is_one_line(teacher_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "adapter"
    adapter(teacher_folder, tokenizer, folder)
    config = json.loads((folder / "adapter_config.json").read_text())

    def named(base: Any) -> str:
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        return refused(folder, tokenizer)

    assert "does not name its base model" in named(None)
    assert "is an adapter itself" in named(str(folder))
    assert "the base model of the adapter" in named(str(tmp_path / "nowhere"))
    wider = of("llama", tokenizer, hidden_size=64)
    save_model(wider, tmp_path / "wider")
    assert "cannot be merged into its base model" in named(str(tmp_path / "wider"))


def test_adapters_that_would_be_merged_into_something_else(tokenizer: Any) -> None:
    """Jamba reads the weights of a projection past its adapter: it trains on one model and saves another."""
    adapted = with_lora(of("jamba", tokenizer), Lora(rank=2), seed=0)
    says = r"student\.lora\.targets: JambaForCausalLM reads weights past"
    with pytest.raises(RecipeError, match=says), under("student.lora"):
        prove_adapters(adapted)
    prove_adapters(with_lora(of("llama", tokenizer), Lora(rank=2), seed=0))


# ------------------------------------------------------------------------------- check, dtypes, ids


def test_check_refuses_what_a_run_would(raw_recipe: dict[str, Any]) -> None:
    raw_recipe["student"] = {"config": {"model_type": "openai-gpt", **CASES["openai-gpt"]}}
    raw_recipe["data"]["pack"] = False
    raw_recipe["training"]["gradient_checkpointing"] = True
    with pytest.raises(LimbeckError, match=r"^training\.gradient_checkpointing: OpenAIGPTLMHeadModel has no"):
        check(parse_recipe(raw_recipe))
    raw_recipe["training"]["gradient_checkpointing"] = False
    check(parse_recipe(raw_recipe))
    gemma3n = {"model_type": "gemma3n_text", **CASES["gemma3n_text"], "vocab_size_per_layer_input": 320}
    raw_recipe["student"] = {"config": gemma3n}
    raw_recipe["techniques"] = [{"kind": "soft", "hidden": {}}]
    with pytest.raises(LimbeckError, match=r"^techniques\.0\.hidden: the layers of Gemma3n"):
        check(parse_recipe(raw_recipe))


def test_what_learns_is_held_in_float32(make_lm: Make) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        learner, frozen = make_lm(1), make_lm(2)
        learner.model.to(dtype)
        frozen.model.to(dtype)
        loss_terms = [LossTerm("student"), LossTerm("student", "teacher")]
        graph = LossGraph({"student": learner}, loss_terms, {"teacher": LiveTeacher(frozen)})
        assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
        assert {p.dtype for p in frozen.model.parameters()} == {dtype}
        batch = opening_batch()
        if dtype == torch.bfloat16:
            tallies = graph.forward_backward(batch, {loss_term.name: batch.count() for loss_term in loss_terms}, 0.0)
            assert all(bool(tally.loss.isfinite()) for tally in tallies.values())


def test_a_student_is_saved_as_its_teacher_was_stored(make_lm: Make, tmp_path: Path) -> None:
    lm = make_lm()
    for dtype in ("float32", "bfloat16", "float16"):
        save_model(lm, tmp_path / dtype, dtype)
        assert stored_dtype(PathModel(path=str(tmp_path / dtype))) == dtype
        lm.model.float()
    assert (tmp_path / "bfloat16" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "float32" / "model.safetensors"
    ).stat().st_size


def test_a_student_stored_in_float16_is_trained(
    raw_recipe: dict[str, Any], tokenizer: Any, teacher_folder: Path, tmp_path: Path
) -> None:
    """Not NaN, and no advice to lower the learning rate."""
    save_model(load_model(PathModel(path=str(teacher_folder)), tokenizer), tmp_path / "half", "float16")
    raw_recipe["student"] = {"path": str(tmp_path / "half"), "dtype": "auto"}
    raw_recipe["techniques"] = ["alone", "soft"]
    raw_recipe["training"]["tokens"] = 300
    run(parse_recipe(raw_recipe))
    for arm in ("alone-seed0", "soft-seed0"):
        records = list(read_metrics(tmp_path / "run" / "arms" / arm / "metrics.jsonl"))
        losses = [value for record in records for name, value in record.items() if name.startswith("loss/")]
        assert losses
        assert np.isfinite(losses).all()


@pytest.mark.parametrize(("asked", "saved"), [("teacher", "bfloat16"), ("float32", "float32")])
def test_a_run_saves_students_as_the_recipe_says(
    asked: str, saved: str, raw_recipe: dict[str, Any], tokenizer: Any, teacher_folder: Path, tmp_path: Path
) -> None:
    lm = load_model(PathModel(path=str(teacher_folder)), tokenizer)
    save_model(lm, tmp_path / "teacher", "bfloat16")
    raw_recipe["teacher"]["path"] = str(tmp_path / "teacher")
    raw_recipe["student"]["save_dtype"] = asked
    raw_recipe["techniques"] = [{"kind": "soft"}]
    raw_recipe["training"]["tokens"] = 300
    run(parse_recipe(raw_recipe))
    (student,) = (tmp_path / "run" / "arms").glob("*/students/*")
    assert stored_dtype(PathModel(path=str(student))) == saved


def test_tokens_beyond_the_embedding_that_no_text_uses(teacher_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    own = load_tokenizer(str(teacher_folder))
    own.add_tokens(["<image>"], special_tokens=True)
    lm = load_model(PathModel(path=str(teacher_folder)), own)
    assert lm.vocab_size == lm.rows == 320
    student = load_model(ConfigModel(config={"model_type": "llama", **CASES["llama"]}), own)
    assert student.rows == 321
    documents = [([0, 5, 6, 7], [True] * 4), ([0, 8, 9], [True] * 3)]
    found = measure(student, Rows(corpus_of(documents), 16, pack=False), lm)
    assert found.kl is not None
    assert np.isfinite(found.kl).all()
    rows = {"teacher": lm.rows, "student": student.rows}
    check_ids(rows, own, [corpus_of(documents)])
    with pytest.raises(RecipeError, match=r"teacher: the data uses token 320 \('<image>'\)"):
        check_ids(rows, own, [corpus_of([*documents, ([0, 320, 4], [True] * 3)])])


def test_a_cut_vocabulary_keeps_no_token_without_an_embedding(teacher_folder: Path, tokenizer: Any) -> None:
    own = load_tokenizer(str(teacher_folder))
    own.add_tokens(["<image>"], special_tokens=True)
    lm = load_model(PathModel(path=str(teacher_folder)), own)
    kept = choose_tokens(lm.model, own, {5: 3, 300: 2}, other=True)
    assert kept.teacher_size == 320
    assert int(kept.ids_K.max()) == 300
    assert len(cut_tokenizer(own, kept)) == kept.size


# ------------------------------------------------------------------------------- modes and states


def test_measuring_and_writing_leave_the_mode_as_it_was(make_lm: Make) -> None:
    lm, teacher = make_lm(1, seq_len=64), make_lm(2)
    rows = Rows(corpus_of([([0, 5, 6, 7], [True] * 4)]), 16, pack=False)
    for training in (True, False):
        lm.model.train(training)
        teacher.model.train(training)
        measure(lm, rows, teacher)
        list(generate(lm, [[5, 6]], Sampling(3), 1))
        assert lm.model.training == teacher.model.training == training


@pytest.mark.parametrize(("kind", "norm"), [("gpt2", "ln_f"), ("gpt_neox", "final_layer_norm"), ("llama", "norm")])
def test_states_of_the_last_layer_are_those_before_the_norm(kind: str, norm: str, tokenizer: Any) -> None:
    lm = of(kind, tokenizer)
    ids, positions = torch.arange(1, 9)[None], torch.arange(8)[None]
    with torch.no_grad(), lm.evaluating():
        last, (first, before) = lm.hidden_of_layers(ids, positions, [0, lm.n_layers - 1])
        theirs = lm.decoder(input_ids=ids, position_ids=positions, output_hidden_states=True).hidden_states
        torch.testing.assert_close(getattr(lm.decoder, norm)(before), last)
        torch.testing.assert_close(first, theirs[1])
    assert not torch.equal(before, last)


def test_a_gguf_file_that_lacks_tensors_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.formats.localise import localised
    from tests.unit.cutting.gguf_files import write

    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "toy.gguf", llama__block_count=3)  # it holds two
    with pytest.raises(InputError, match=r"lacks the tensor `blk\.2\.attn_k\.weight`"):
        localised(PathModel(path=str(file)))
    assert not list((tmp_path / "cache").rglob("gguf.json"))
