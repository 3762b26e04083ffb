"""Reading a model's activations on a calibration set: forwards with hooks, nothing kept but what is asked.

Shape letters: B rows, T positions, D width of an activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.errors import RecipeError

Watcher = Callable[[Tensor, Tensor], None]
"""Called with an activation [B, T, D] and the mask [B, T] (bool) of the positions that are not padding."""


class TokenBatch(Protocol):
    """What is read of a batch; ``data.packing.Batch`` is one."""

    @property
    def ids_BT(self) -> Tensor: ...  # noqa: N802

    @property
    def positions_BT(self) -> Tensor: ...  # noqa: N802

    @property
    def segments_BT(self) -> Tensor: ...  # noqa: N802


def forwards(
    model: Any,
    batches: Iterable[TokenBatch],
    *,
    inputs: Mapping[torch.nn.Module, Watcher] | None = None,
    outputs: Mapping[torch.nn.Module, Watcher] | None = None,
) -> Iterator[Tensor]:
    """Run the decoder over the batches without gradients, handing activations to watchers.

    The head is not run. The model is in evaluation mode meanwhile.

    Args:
        inputs: watchers of a module's (first) input.
        outputs: watchers of a module's (first) output.

    Yields:
        Mask [B, T] of each batch, after its forward.

    Raises:
        RecipeError: there is not one position to read.
    """
    mask = torch.empty(0)

    def before(watch: Watcher) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            watch(args[0] if args else kwargs["hidden_states"], mask)

        return hook

    def after(watch: Watcher) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            watch(output[0] if isinstance(output, tuple) else output, mask)

        return hook

    handles = [m.register_forward_pre_hook(before(w), with_kwargs=True) for m, w in (inputs or {}).items()]
    handles += [m.register_forward_hook(after(w)) for m, w in (outputs or {}).items()]
    training, decoder, read = model.training, model.get_decoder(), 0
    model.eval()
    try:
        for batch in batches:
            mask = (batch.segments_BT >= 0).to(model.device)
            with torch.no_grad():  # entered anew: a generator must not leak it to its caller
                decoder(
                    input_ids=batch.ids_BT.to(model.device),
                    position_ids=batch.positions_BT.to(model.device),
                    use_cache=False,
                )
            read += int(mask.sum())
            yield mask
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not read:
        raise RecipeError(
            "there is no text to measure the teacher's layers on", fix="Give the calibration set documents"
        )
