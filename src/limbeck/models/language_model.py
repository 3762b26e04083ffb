"""A causal language model seen as what distillation needs: hidden states, and a head.

The logits of a whole batch are never made; ``objectives`` joins hidden states and head a chunk at
a time. That the pieces found here really make the model's own logits is proven on loading.

Shape letters: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.models.proof import prove
from limbeck.models.tokenizer import OTHER, vocabulary_size
from limbeck.objectives.targets import Dense

PROJECTIONS = "limbeck_projections"
"""Where a learner keeps the projections of its hidden states while it trains; never saved."""

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call the soft cap of the logits."""


@dataclass(frozen=True)
class Head:
    """logits = softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap)."""

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None
    scale: float

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states [..., D], [..., V]; for a few positions at a time."""
        logits = self.scale * torch.nn.functional.linear(hidden, self.weight_VD, self.bias_V)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


class LanguageModel:
    """A transformers model (or peft's wrapping of one) with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        unfreeze_padding(model)
        # A tokenizer may have tokens beyond the embedding (Gemma 3's image token): no text uses them.
        self.vocab_size = min(vocabulary_size(tokenizer), self.rows)
        # A teacher may have another vocabulary of its own than the run (models/restricted.py).
        self.own_tokenizer, self.own_vocab_size = tokenizer, self.vocab_size

    @property
    def core(self) -> Any:
        """The transformers model itself, adapters inside it if there are any."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        found = self.core.get_decoder()
        # llama4_text names its base model otherwise than the attribute that holds it.
        return self.core.model if found is self.core else found

    @property
    def config(self) -> Any:
        return self.core.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def rows(self) -> int:
        """Rows of the head: the vocabulary with its padding."""
        return int(self.head().weight_VD.shape[0])

    def parameters(self) -> int:
        """Number of parameters; tied ones count once, adapters are counted as merged."""
        return sum(p.numel() for p in self._own())

    def _own(self) -> list[Tensor]:
        """The model's parameters without what only training adds."""
        added = ("lora_", f"{PROJECTIONS}.")
        return [p for name, p in self.model.named_parameters() if not any(part in name for part in added)]

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D]. Documents packed into a row do not see each other:
        where a position does not follow its neighbour's, a new one begins."""
        out = self.decoder(input_ids=self.own_ids(ids_BT), position_ids=positions_BT, use_cache=False)
        return out.last_hidden_state

    def hidden_of_layers(self, ids_BT: Tensor, positions_BT: Tensor, layers: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states (the final norm is in them), and those after each of ``layers`` (from 0), all [B, T, D].

        After the last layer, too, they are what it gives to the final norm, so that they compare with those
        after any other layer.

        Raises:
            RecipeError: the layers are not found, or give something else.
        """
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            return lambda _module, _args, out: found.__setitem__(layer, out if isinstance(out, Tensor) else out[0])

        modules = self.layers()
        hooks = [modules[layer].register_forward_hook(keep(layer)) for layer in sorted(set(layers))]
        try:
            last_BTD = self.hidden(ids_BT, positions_BT)
        finally:
            for hook in hooks:
                hook.remove()
        if any(state.shape != last_BTD.shape for state in found.values()):
            raise RecipeError(
                f"the layers of {type(self.core).__name__} give states of another shape than its last ones",
                fix="Leave `hidden` out of the technique",
            )
        return last_BTD, [found[layer] for layer in layers]

    def layers(self) -> torch.nn.ModuleList:
        """The decoder's layers, first to last.

        Raises:
            RecipeError: the architecture keeps them in another way than all known ones.
        """
        for module in self.decoder.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.n_layers:
                return module
        raise RecipeError(
            f"limbeck does not find the layers of {type(self.core).__name__}",
            fix="Leave `hidden` out of the technique",
        )

    @property
    def n_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    def own_ids(self, ids: Tensor) -> Tensor:
        """The run's ids in this model's own vocabulary; negative ones stay as they are."""
        return ids

    def from_own(self, ids: list[int]) -> list[int]:
        """What this model wrote, in the run's ids."""
        return ids

    def unwritten(self) -> list[int]:
        """Own ids that stand for no text: padding of the head, and the bucket of dropped tokens."""
        other = self.own_tokenizer.get_vocab().get(OTHER)
        return [*range(self.own_vocab_size, self.rows), *([] if other is None else [other])]

    def end_ids(self) -> list[int]:
        """Own ids that end a text: the tokenizer's end mark, and what else the model's makers list beside it (the
        end of a turn, in Gemma 3 and Llama 3). A list without the tokenizer's mark is of another tokenizer."""
        end = self.own_tokenizer.eos_token_id
        if end is None:
            return []
        listed = getattr(self.core.generation_config, "eos_token_id", None)
        return listed if isinstance(listed, list) and end in listed else [end]

    def as_target(self, hidden_ND: Tensor, *, own: bool = False) -> Dense:
        """What this model thinks, as something to learn from; no gradient flows back into it.

        In the run's vocabulary, or with ``own`` in its own.
        """
        head = self.head()
        bias = head.bias_V.detach() if head.bias_V is not None else None
        return Dense(hidden_ND.detach(), head.weight_VD.detach(), bias, softcap=head.softcap, scale=head.scale)

    def head(self) -> Head:
        layer, config = self.core.get_output_embeddings(), self.config
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        caps = (getattr(config, name, None) for name in _SOFTCAPS)
        return Head(layer.weight, getattr(layer, "bias", None), next((cap for cap in caps if cap), None), scale)

    def prove(self, key: str, *, fresh: bool = False) -> None:
        """Check on real forward passes that head and hidden states make this model's logits, and
        whether documents packed into one row stay apart; sets ``self.packs``.

        Raises:
            RecipeError: it is not causal, or does something to its logits that is not known here.
        """
        self.packs = prove(self, key, fresh=fresh)

    def hold_in_bfloat16(self) -> None:
        """Round the linear layers of a model that does not learn, once.

        Autocast rounds them to the same numbers, but keeps what it rounded only of weights that learn: a frozen
        teacher's would be rounded anew in every forward pass. The head, which may be tied, is the objective's.
        """
        head = self.core.get_output_embeddings()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.to(torch.bfloat16)

    def hold_in_float32(self) -> None:
        """Hold what is trained in float32: in half precision, most updates are smaller than one rounding step.

        Adapters are float32 already (peft); under them, float16 would overflow, while bfloat16 may stay.
        """
        adapted = hasattr(self.model, "peft_config")
        if self.core.dtype == torch.float16 or (self.core.dtype == torch.bfloat16 and not adapted):
            self.model.float()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout; afterwards the model is in the mode it was in."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def unfreeze_padding(model: Any) -> None:
    """Let the row of the padding token learn: where it is a token that is read (BOS and EOS often are), it must.

    Padding stands on the right of a row and is never attended to, so that its row needs no protection.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None


def fill_zero_rows(model: Any, seed: int) -> None:
    """Initialise the row that transformers sets to zero for ``pad_token_id``, as the other rows are."""
    for module in model.modules():
        if not isinstance(module, torch.nn.Embedding) or module.padding_idx is None:
            continue
        weight, row = module.weight.data, module.padding_idx
        if not weight[row].any():
            generator = torch.Generator().manual_seed(seed)
            scale = weight.float().pow(2).sum().div(max(weight.numel() - weight.shape[1], 1)).sqrt()
            drawn = torch.randn(weight.shape[1], generator=generator) * scale.cpu()
            weight[row] = drawn.to(weight.device, weight.dtype)
