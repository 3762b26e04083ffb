"""A student that keeps the part of its teacher's vocabulary that its data uses.

The tokenizer is rebuilt (``bpe``), the kept rows of the embedding and the head are copied, and what
the teacher says about dropped tokens can go to one more row, ``<|other|>``, the tail bucket: its
probability is theirs together, so the restricted distribution is one, and nothing is renormalised.

Shape letters: V the teacher's vocabulary, K kept tokens, N positions, D hidden size.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.models.restricted import KeptTokens
from limbeck.models.tokenizer import OTHER, vocabulary_size
from limbeck.pruning.architectures import Architecture, architecture_of, rebuild, select
from limbeck.pruning.bpe import Bpe, template_ids
from limbeck.pruning.calibration import TokenBatch, forwards


@dataclass(frozen=True)
class VocabularyCut:
    """A model and a tokenizer of the same, smaller vocabulary, and how it lies in the teacher's."""

    model: Any
    tokenizer: Any
    kept: KeptTokens


def choose_tokens(
    model: Any,
    tokenizer: Any,
    counts: Mapping[int, int],
    *,
    min_count: int = 1,
    size: int | None = None,
    other: bool = False,
    added: Literal["all", "used"] = "all",
) -> KeptTokens:
    """The tokens that occur at least ``min_count`` times, and those that cannot be missed.

    Always kept: bytes, special tokens (those that the model's configuration names too), what the
    chat template writes, added tokens, and the parts that kept tokens are merged from.

    Args:
        counts: how often the data uses each teacher id.
        size: the most tokens the student gets, all included; the most frequent come first (the
            lower id wins a tie), and one whose parts do not fit any more is passed over.
        other: one row more for all dropped tokens together; it counts towards ``size``.
        added: ``used``: added tokens that have no role and do not occur may go as well. Gemma 3
            has 6,000 unused ones.

    Raises:
        RecipeError: a tokenizer that cannot be cut, a size below what has to be kept, or counts of
            tokens that are not the tokenizer's.
    """
    bpe = Bpe.of(tokenizer)
    if other:
        _refuse_other(bpe)
    # Tokens beyond the embedding (Gemma 3's image token) have no row to keep.
    teacher_size = min(vocabulary_size(tokenizer), model.get_input_embeddings().weight.shape[0])
    known = {i for i in bpe.vocab.values() if i < teacher_size}
    strange = sorted(set(counts) - known)
    if strange:
        raise RecipeError(
            f"the data uses token {strange[0]}, which this tokenizer ({teacher_size} tokens) does not have",
            fix="Count with the teacher's tokenizer",
        )
    must = bpe.bytes | set(tokenizer.all_special_ids) | template_ids(tokenizer) | _configured(model)
    if added == "all":
        must |= set(bpe.added.values())
    kept = bpe.closure(must & known)
    room = (teacher_size if size is None else size) - other * (size is not None)
    if len(kept) > room:
        raise RecipeError(
            f"got {size}, but {len(kept) + other} tokens have to be kept (bytes, special and added tokens)",
            key=".size",
            fix=f"Write {len(kept) + other} or more",
        )
    for token in sorted((i for i in counts if counts[i] >= max(min_count, 1)), key=lambda i: (-counts[i], i)):
        more = bpe.closure([token]) - kept
        if len(kept) + len(more) <= room:
            kept |= more
    ids_K = torch.tensor(sorted(kept))
    return KeptTokens(ids_K, teacher_size, len(ids_K) if other else None)


def _refuse_other(bpe: Bpe) -> None:
    if OTHER in bpe.vocab:
        raise RecipeError(
            f"the teacher has a token {OTHER}: its own vocabulary was cut", fix="Leave it out, or cut its teacher"
        )


def cut_vocabulary(
    model: Any,
    tokenizer: Any,
    counts: Mapping[int, int],
    *,
    size: int | None = None,
    other: bool = False,
    added: Literal["all", "used"] = "all",
    calibration: Iterable[TokenBatch] | None = None,
) -> VocabularyCut:
    """A new model and tokenizer with the tokens that the data uses; see ``choose_tokens``.

    Text whose tokens are all kept has the old ids, renumbered; any other text falls into smaller
    pieces, and no text is lost that the teacher's tokenizer does not lose. Before training, the
    model's logits on kept text are the teacher's own at the kept tokens.

    The row of ``other`` starts as the mean of the dropped rows. With ``calibration`` (batches of
    *teacher* ids; a few thousand positions do) the head's row is fitted, by ridge regression towards
    that mean, to make its logit the log of the dropped tokens' mass; without, it knows nothing of
    their number: measured on TinyStories, 18 (SmolLM2) and 24 nats (Gemma 3 270M) too low, against a
    mean error of 0.6 after fitting Gemma on 12,000 positions. The token is never read, only
    predicted, and generation suppresses it.

    Raises:
        RecipeError: what ``choose_tokens`` raises, or an unknown architecture.
    """
    architecture = architecture_of(model)
    kept = choose_tokens(model, tokenizer, counts, size=size, other=other, added=added)
    state = select(model.state_dict(), architecture, {"vocab": kept.ids_K})
    if other:
        _add_other(state, model, architecture, kept, calibration)
    new_id = dict(zip(kept.ids_K.tolist(), range(len(kept.ids_K)), strict=True))
    config = copy.deepcopy(model.config)
    config.vocab_size = kept.size
    _renumber_ids(config, new_id)
    cut = rebuild(model, config, state)
    if cut.generation_config is not None:
        _renumber_ids(cut.generation_config, new_id)
        if other:
            suppressed = cut.generation_config.suppress_tokens or []
            cut.generation_config.suppress_tokens = [*suppressed, kept.other]
    return VocabularyCut(cut, cut_tokenizer(tokenizer, kept), kept)


def cut_tokenizer(tokenizer: Any, kept: KeptTokens) -> Any:
    """The tokenizer of the kept tokens, with the same special tokens, template and limits.

    Raises:
        RecipeError: the kept tokens do not number 0, 1, ... in the rebuilt tokenizer.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = Bpe.of(tokenizer)
    if kept.other is not None:
        _refuse_other(bpe)
    ids = kept.ids_K.tolist()
    raw = bpe.cut(ids, OTHER if kept.other is not None else None)
    new = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)),
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=getattr(tokenizer, "clean_up_tokenization_spaces", False),
        **tokenizer.special_tokens_map,
    )
    new.chat_template = tokenizer.chat_template
    new_id = {old: k for k, old in enumerate(ids)}
    wanted = {token: new_id[i] for token, i in bpe.vocab.items() if i in new_id}
    if kept.other is not None:
        wanted[OTHER] = kept.other
    if new.get_vocab() != wanted:
        raise RecipeError("the tokenizer's added tokens cannot be renumbered", fix="Leave `vocabulary` out")
    return new


def _add_other(
    state: dict[str, Tensor],
    model: Any,
    architecture: Architecture,
    kept: KeptTokens,
    calibration: Iterable[TokenBatch] | None,
) -> None:
    """Append the row of ``other`` to every weight over the vocabulary."""
    old, dropped = model.state_dict(), kept.dropped.to(model.device)
    for name in [architecture.embedding, architecture.head]:
        if not len(dropped):
            row = old[name].float().mean(0)
        else:
            row = old[name][dropped].float().mean(0)
        if name == architecture.head and calibration is not None and len(dropped):
            row = _fit_tail(model, architecture, dropped, row, calibration)
        state[name] = torch.cat([state[name], row.to(state[name])[None]])
    if model.config.tie_word_embeddings:
        # One row serves both, and `other` is only ever predicted.
        state[architecture.embedding] = state[architecture.head]


def _fit_tail(
    model: Any,
    architecture: Architecture,
    dropped: Tensor,
    prior_D: Tensor,
    batches: Iterable[TokenBatch],
    chunk: int = 256,
) -> Tensor:
    """The row w that makes hidden · w nearest to log Σ exp(hidden · dropped rows), least squares.

    A ridge of a hundredth of the hidden states' mean square holds it to ``prior_D`` where the
    calibration set says nothing.
    """
    weight = model.get_output_embeddings().weight.detach()[dropped]
    softcap = getattr(model.config, "final_logit_softcapping", None)
    width = weight.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    moment = torch.zeros(width, dtype=torch.float64)

    def add(hidden_BTD: Tensor, mask_BT: Tensor) -> None:
        for hidden_ND in hidden_BTD[mask_BT].split(chunk):  # never [all positions, vocabulary]
            logits = (hidden_ND @ weight.T).float()
            if softcap:
                mass_N = (softcap * torch.tanh(logits / softcap)).logsumexp(-1)
                mass_N = softcap * torch.atanh((mass_N / softcap).clamp(-0.999, 0.999))
            else:
                mass_N = logits.logsumexp(-1)
            hidden_ND = hidden_ND.double().cpu()
            gram.add_(hidden_ND.T @ hidden_ND)
            moment.add_(hidden_ND.T @ (mass_N.double().cpu() - hidden_ND @ prior_D.double().cpu()))

    norm = model.get_submodule(architecture.final_norm.removesuffix(".weight"))
    for _ in forwards(model, batches, outputs={norm: add}):
        pass
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    return prior_D + torch.linalg.solve(gram + ridge, moment).to(prior_D)


def _configured(model: Any) -> set[int]:
    """Token ids that the model's configurations name."""
    found: set[int] = set()
    for config in (model.config, model.generation_config):
        for _, value in _id_keys(config):
            found.update([value] if isinstance(value, int) else value)
    return found


def _id_keys(config: Any) -> list[tuple[str, Any]]:
    """``eos_token_id: 2`` or ``[2, 5]``: the configuration's keys that hold ids of tokens."""
    pairs = vars(config).items() if config is not None else ()
    return [(k, v) for k, v in pairs if k.endswith("_token_id") and isinstance(v, (int, list))]


def _renumber_ids(config: Any, new_id: Mapping[int, int]) -> None:
    for name, value in _id_keys(config):
        several = isinstance(value, list)
        setattr(config, name, [new_id[i] for i in value if i in new_id] if several else new_id.get(value))
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if getattr(config, name, None):
            setattr(config, name, [new_id[i] for i in getattr(config, name) if i in new_id])
