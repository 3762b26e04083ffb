"""Which token makes a model fail: asked only once a gradient or a loss is not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from limbeck.data.packing import Batch
from limbeck.errors import InputError
from limbeck.models.causal_lm import CausalLM

LOGITS_AT_A_TIME = 64  # positions


def fault_of(lm: CausalLM, batches: Iterable[Batch], name: str, precision: str = "fp32") -> InputError | None:
    """The error of a model whose logits are NaN or infinite somewhere in these batches; None: all are finite.

    A NaN spreads from its token to every later one, and through masked attention to earlier ones too. The token
    that is named is the first at which the document fails when it is read alone.

    Args:
        name: what the model is called among those of the training, or of the comparison; the error's key.
    """
    with lm.autocast(precision):
        for batch in batches:
            failed_BT = not_finite(lm, batch.ids_BT, batch.positions_BT) & (batch.segments_BT >= 0)
            rows = failed_BT.any(1).nonzero().flatten().tolist()
            if rows:
                ids_T, at = _first_failure(lm, batch, failed_BT, rows[0])
                return _error(name, lm, ids_T, at, precision)
    return None


@torch.no_grad()
def not_finite(lm: CausalLM, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Positions [B, T], bool, at which a model's logits hold NaN or +infinity; minus infinity forbids a token."""
    hidden_BTD = lm.hidden(ids_BT, positions_BT)
    failed_N = ~torch.isfinite(hidden_BTD).all(-1).flatten()
    head = lm.head()
    flat_ND = hidden_BTD.flatten(0, 1).to(head.weight_VD.dtype)
    for start in range(0, len(flat_ND), LOGITS_AT_A_TIME):
        logits_nV = head.logits(flat_ND[start : start + LOGITS_AT_A_TIME])
        failed_N[start : start + LOGITS_AT_A_TIME] |= (logits_nV.isnan() | (logits_nV == float("inf"))).any(-1)
    return failed_N.view(ids_BT.shape)


def _first_failure(lm: CausalLM, batch: Batch, failed_BT: Tensor, row: int) -> tuple[Tensor, int]:
    """A document's ids [T] of a row that fails, and the index of the token at which it does."""
    ids_T, segments_T = batch.ids_BT[row], batch.segments_BT[row]

    def fails(document_T: Tensor) -> bool:
        positions_T = torch.arange(len(document_T), device=document_T.device)
        return bool(not_finite(lm, document_T[None], positions_T[None]).any())

    for segment in range(int(segments_T.max()) + 1):
        document_T = ids_T[segments_T == segment]
        if not len(document_T) or not fails(document_T):
            continue
        low, high = 1, len(document_T)  # the shortest beginning that fails has between so many tokens
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fails(document_T[:middle]) else (middle + 1, high)
        return document_T, low - 1
    at = int(failed_BT[row].nonzero()[0])  # only beside others
    begins = int((segments_T == segments_T[at]).nonzero()[0])
    return ids_T[segments_T == segments_T[at]], at - begins


def _error(name: str, lm: CausalLM, ids_T: Tensor, at: int, precision: str) -> InputError:
    own_T = lm.own_ids(ids_T)
    token = int(own_T[at])
    begins = lm.own_tokenizer.decode(own_T[:20].tolist())[:60]
    called = str(getattr(lm.config, "_name_or_path", "") or "this model")
    fix = "Remove that document, or use another model"
    if precision == "bf16":
        fix += ", or write `precision: fp32`"
    return InputError(
        f"the logits of {called} are not finite at token {token} ({lm.own_tokenizer.decode([token])!r}), "
        f"number {at + 1} of the text that begins {begins!r}",
        key=name,
        fix=fix,
    )
