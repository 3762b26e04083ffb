"""Hidden states that vLLM kept (``extract_hidden_states``) into a store of any scheme.

A safetensors file a text: ``token_ids`` [T] and ``hidden_states`` [T, L, E], whose last layer is the model's last,
*before* its final norm (vLLM's layer id ``num_hidden_layers``). The teacher's own norm and head make distributions of
them, so that nothing is lost, and nothing but those is computed.

Shape letters: T tokens; L layers that were kept; E width; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data.chat.encode import MASKED
from limbeck.data.corpus import Corpus
from limbeck.data.packing import Piece, Row
from limbeck.errors import InputError, StoreError
from limbeck.models.causal_lm import CausalLM
from limbeck.objectives.dense import logits_of
from limbeck.signals.capture import signals_of
from limbeck.signals.exchange.foreign import Imported, Seen
from limbeck.signals.exchange.match import Documents
from limbeck.signals.exchange.proof import A_TEXT, POSITIONS, TOLERANCE, Proof
from limbeck.signals.scheme import Scheme
from limbeck.signals.spans import Reading, context_of, digest_of, grid_of
from limbeck.signals.store import Identity, Span, SpanSignal
from limbeck.signals.upkeep.join import copy_into

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class States:
    """Of one text.

    Attributes:
        where: the file, for errors.
        ids: int64 [T].
        last_TE: what the last layer gives to the final norm.
    """

    where: str
    ids: np.ndarray
    last_TE: Tensor


def read_states(source: Path) -> Iterator[States]:
    """The texts in a file, or in all files of a folder.

    Raises:
        InputError: a file is damaged, or holds something else.
    """
    for file in sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]:
        try:
            with safe_open(str(file), "pt") as opened:
                ids, states = opened.get_tensor("token_ids"), opened.get_tensor("hidden_states")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} holds no `token_ids` and `hidden_states` ({error})") from None
        if states.ndim not in (2, 3) or len(states) != len(ids):
            raise InputError(f"{file} has hidden_states {list(states.shape)} for {len(ids)} tokens")
        yield States(str(file), ids.numpy().astype(np.int64), states if states.ndim == 2 else states[:, -1])


def import_states(
    source: Path,
    folder: Path,
    identity: Identity,
    corpus: Corpus,
    lm: CausalLM,
    progress: Callable[[int], None] = lambda n: None,
) -> Imported:
    """Draw the signals of a scheme from kept hidden states, after 32 positions were scored again.

    Args:
        source: a file or folder.
        folder: of the store; made if it is not there.
        identity: of the store: any scheme, context ``document``.
        corpus: the documents of the run; a text is one, or its beginning, by its tokens.
        lm: the teacher that the states are said to be of.
        progress: is told of spans.

    Raises:
        InputError: the states are of other documents, or not this teacher's.
        StoreError: the store's context is another.
    """
    if identity.context != "document":
        raise StoreError(
            f"kept hidden states are of documents from their beginning, and the store of context {identity.context}",
            fix="Write `context: document` into `signals`",
        )
    documents, norm, scheme = Documents(corpus), final_norm(lm), Scheme(**identity.scheme)
    proof = _prove(lm, norm, _first(source, documents, lm), scheme.temperature)
    seen = Seen()

    def signals() -> Iterator[SpanSignal]:
        for text in read_states(source):
            seen.texts += 1
            found = documents.find(text.ids)
            seen.matched += bool(found)
            for d, common in found:
                reading = _reading(corpus, d, common, identity.window)
                if reading is not None:
                    states = _normed(lm, norm, text.last_TE[: len(reading.row)])[None]
                    yield from signals_of(lm, [reading], scheme, "fp32", states)

    return Imported(copy_into(folder, identity, signals(), progress), seen.texts, seen.matched, proof)


def final_norm(lm: CausalLM) -> Any:
    """The module of a model that makes its last hidden states, found by what it gives.

    Raises:
        InputError: none of the modules beside the layers gives them.
    """
    given: dict[Any, Tensor] = {}

    def keep(module: Any, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            given[module] = output

    hooks = [module.register_forward_hook(keep) for module in lm.decoder.children()]
    try:
        with torch.no_grad():
            ids_BT = torch.tensor([[0, 1, 2, 3]], device=lm.device)
            last_BTE = lm.hidden(ids_BT, torch.arange(4, device=lm.device)[None])
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(given.items()):
        if output.shape == last_BTE.shape and torch.equal(output, last_BTE):
            return module
    raise InputError(f"the final norm of {type(lm.core).__name__} is not found", fix="Import log-probabilities instead")


@torch.no_grad()
def _normed(lm: CausalLM, norm: Any, states_TE: Tensor) -> Tensor:
    weight = next(norm.parameters(), None)
    dtype = states_TE.dtype if weight is None else weight.dtype
    normed_TE: Tensor = norm(states_TE.to(lm.device, dtype)[None])[0]
    return normed_TE


def _first(source: Path, documents: Documents, lm: CausalLM) -> list[States]:
    found: list[States] = []
    texts = 0
    width = int(lm.config.hidden_size)
    for text in read_states(source):
        texts += 1
        if text.last_TE.shape[1] != width:
            raise InputError(
                f"{text.where} has states of width {text.last_TE.shape[1]}, and the teacher {width}",
                fix="Name the teacher that made them",
            )
        if len(text.ids) >= 3 and documents.find(text.ids):
            found.append(text)
            if len(found) * A_TEXT >= POSITIONS:
                break
    if not found:
        raise InputError(
            f"none of the {texts:,} texts in {source} is a document of this recipe",
            fix="Name the data that it was made of in `data.corpus`; a text must begin where the document begins",
        )
    return found


@torch.no_grad()
def _prove(lm: CausalLM, norm: Any, texts: list[States], temperature: float) -> Proof:
    """As ``proof.prove``, with whole distributions: the mean of sum |p of the file - p of the teacher|."""
    errors: list[float] = []
    for text in texts:
        ids_BT = torch.from_numpy(text.ids)[None].to(lm.device)
        theirs_TE = lm.hidden(ids_BT, torch.arange(len(text.ids), device=lm.device)[None])[0]
        places = np.unique(np.linspace(1, len(text.ids) - 2, A_TEXT).astype(int))
        ours_nV, theirs_nV = (
            torch.softmax(_logits(lm, states_TE[places]) / temperature, -1)
            for states_TE in (_normed(lm, norm, text.last_TE), theirs_TE)
        )
        errors += (ours_nV - theirs_nV).abs().sum(-1).tolist()
    error = float(np.mean(errors))
    if not error <= TOLERANCE:
        raise InputError(
            f"the hidden states are not what this teacher's last layer gives to its final norm: at {len(errors)} "
            f"positions the probabilities differ by {error:.2f} in sum",
            fix="Keep layer `num_hidden_layers` of this teacher, as the last of `eagle_aux_hidden_state_layer_ids`",
        )
    return Proof(0, error, len(errors))


def _logits(lm: CausalLM, states_nE: Tensor) -> Tensor:
    chunks = logits_of(lm.as_target(states_nE), vocab_size=lm.vocab_size)
    return torch.cat([logits_nV.float().cpu().clone() for _, logits_nV in chunks])


def _reading(corpus: Corpus, d: int, common: int, window: int) -> Reading | None:
    """The spans of a document that a text of ``common`` tokens holds whole; None: there are none with a label."""
    ids, mask = corpus.document(d)
    key, grid = int(corpus.keys[d]), grid_of(window)
    spans = []
    for start in range(0, len(ids) - 1, grid):
        length = min(grid, len(ids) - 1 - start)
        if start + length > common or context_of(start, window) != 0:
            break
        if (mask[start + 1 : start + length + 1] != MASKED).any():
            spans.append(Span(key, start, length, 0, digest_of(ids[: start + length + 1])))
    if not spans:
        return None
    end = spans[-1].start + spans[-1].length + 1
    return Reading(Row((Piece(ids[:end], mask[:end], key, 0),)), tuple(spans))
