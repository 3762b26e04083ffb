"""A causal language model seen as what distillation needs: hidden states, and a head.

The logits of a whole batch are never made; ``objectives`` joins hidden states and head a chunk at
a time. That the pieces found here really make the model's own logits is proven on loading.

Shape letters: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.models.tokenizer import OTHER, vocabulary_size
from limbeck.objectives.fused import Outcome, Term, fused_divergence, shared_vocabulary
from limbeck.objectives.targets import Dense

PROJECTIONS = "limbeck_projections"
"""Where a learner keeps the projections of its hidden states while it trains; never saved."""

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call the soft cap of the logits."""


@dataclass(frozen=True)
class Traits:
    """What distillation relies on in a model: read from its configuration, verified on loading (``models/proof.py``).

    Attributes:
        softcap: cap of the logits, or None.
        scale: factor of the logits, before the cap.
        max_positions: tokens of the longest row that it reads; None: there is no limit.
        packs: documents packed into a row do not see each other. False until it is proven.
    """

    softcap: float | None = None
    scale: float = 1.0
    max_positions: int | None = None
    packs: bool = False

    @classmethod
    def of(cls, config: Any) -> Traits:
        """The traits that a transformers configuration claims."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        caps = (getattr(config, name, None) for name in _SOFTCAPS)
        return cls(next((cap for cap in caps if cap), None), scale, getattr(config, "max_position_embeddings", None))


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


class CausalLM(nn.Module):
    """A transformers model (or peft's wrapping of one) with its tokenizer.

    A forward pass gives hidden states, not logits. It is one call of one module, so that gradient hooks, autocast, DDP
    and FSDP2 see it. The head is used afterwards, by the objective: :meth:`head`.

    Attributes:
        model: the transformers model; it may be replaced by another of the same shape.
        tokenizer: of the ids that are read and learned.
        traits: what is known of the model.
        shared: other users hold the same weights (``runtime/pool.py``), so that they must not be changed.
    """

    model: Any

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.traits, self.shared = Traits.of(self.config), False
        unfreeze_padding(model)
        # A tokenizer may have tokens beyond the embedding (Gemma 3's image token): no text uses them.
        self.vocab_size = min(vocabulary_size(tokenizer), len(self.head().weight_VD))
        # A teacher may have another vocabulary of its own than the run (models/restricted.py).
        self.own_tokenizer, self.own_vocab_size = tokenizer, self.vocab_size

    def __getattr__(self, name: str) -> Any:
        # A property that fails with an AttributeError ends up here, where torch would hide what was missing.
        found = getattr(type(self), name, None)
        return found.fget(self) if isinstance(found, property) and found.fget else super().__getattr__(name)

    @property
    def training(self) -> bool:
        """The mode of the inner model, also where that was switched by itself."""
        model = self.__dict__.get("_modules", {}).get("model")
        return model is None or bool(model.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if (model := self.__dict__.get("_modules", {}).get("model")) is not None:
            model.training = mode

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

    @property
    def packs(self) -> bool:
        """Whether documents packed into a row are known not to see each other."""
        return self.traits.packs

    def n_parameters(self) -> int:
        """Number of parameters; tied ones count once, adapters are counted as merged."""
        return sum(p.numel() for p in self._own())

    def _own(self) -> list[Tensor]:
        """The model's parameters without what only training adds."""
        added = ("lora_", f"{PROJECTIONS}.")
        return [p for name, p in self.model.named_parameters() if not any(part in name for part in added)]

    def forward(self, ids_BT: Tensor, positions_BT: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states (the final norm is in them), and those after each of ``layers``, all [B, T, D].

        Args:
            ids_BT: int64 [B, T], in the ids of ``tokenizer``.
            positions_BT: int64 [B, T]. Documents packed into a row do not see each other: where a position does not
                follow its neighbour's, a new one begins.
            layers: numbers from 0. After the last layer, too, the states are what it gives to the final norm, so that
                they compare with those after any other layer.

        Raises:
            RecipeError: the layers are not found, or give something else.
        """
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            return lambda _module, _args, out: found.__setitem__(layer, out if isinstance(out, Tensor) else out[0])

        modules = self.layers() if layers else nn.ModuleList()
        hooks = [modules[layer].register_forward_hook(keep(layer)) for layer in sorted(set(layers))]
        try:
            out = self.decoder(input_ids=self.own_ids(ids_BT), position_ids=positions_BT, use_cache=False)
            last_BTD = out.last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        if any(state.shape != last_BTD.shape for state in found.values()):
            raise RecipeError(
                f"the layers of {type(self.core).__name__} give states of another shape than its last ones",
                fix="Leave `hidden` out of the technique",
            )
        return last_BTD, [found[layer] for layer in layers]

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D]: a forward pass, see :meth:`forward`."""
        last_BTD: Tensor = self(ids_BT, positions_BT)[0]
        return last_BTD

    def hidden_of_layers(
        self, ids_BT: Tensor, positions_BT: Tensor, layers: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """The same with the states after each of ``layers``."""
        found: tuple[Tensor, list[Tensor]] = self(ids_BT, positions_BT, layers)
        return found

    def layers(self) -> nn.ModuleList:
        """The decoder's layers, first to last.

        Raises:
            RecipeError: the architecture keeps them in another way than all known ones.
        """
        for module in self.decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.n_layers:
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
        """Own ids that end a text: the tokenizer's EOS token, and what else the model's makers list beside it (the
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

    def compare(self, hidden_ND: Tensor, terms: Sequence[Term]) -> Outcome:
        """The objective on this model's head: its logits are never held.

        Args:
            hidden_ND: last hidden states [N, D] of this model, after its final norm.
            terms: what they are compared with, in this model's own vocabulary.
        """
        head = self.head()
        return fused_divergence(
            hidden_ND,
            head.weight_VD,
            terms,
            bias_V=head.bias_V,
            softcap=head.softcap,
            scale=head.scale,
            vocab_size=shared_vocabulary(self.own_vocab_size, terms),
        )

    def head(self) -> Head:
        """The head as it is now; under FSDP, whole only between a forward pass and its backward pass."""
        layer, traits = self.core.get_output_embeddings(), self.traits
        return Head(layer.weight, getattr(layer, "bias", None), traits.softcap, traits.scale)

    def linear_layers(self) -> list[nn.Linear]:
        """All but the head, which may be tied to the embedding, and is the objective's."""
        head = self.core.get_output_embeddings()
        return [module for module in self.model.modules() if isinstance(module, nn.Linear) and module is not head]

    def hold_in_bfloat16(self) -> None:
        """Round the linear layers of a frozen model, once.

        Autocast rounds them to the same numbers, but keeps what it rounded only of weights that are trained: a frozen
        teacher's would be rounded anew in every forward pass.

        Raises:
            RuntimeError: others hold the same weights, and they are not rounded yet.
        """
        for layer in self.linear_layers():
            if any(p.is_floating_point() and p.dtype != torch.bfloat16 for p in layer.parameters()):
                self.require_private()
                layer.to(torch.bfloat16)

    def hold_in_float32(self) -> None:
        """Hold what is trained in float32: in half precision, most updates are smaller than one rounding step.

        Adapters are float32 already (peft); under them, float16 would overflow, while bfloat16 may stay.

        Raises:
            RuntimeError: others hold the same weights, and they are in half precision.
        """
        adapted = hasattr(self.model, "peft_config")
        if self.core.dtype == torch.float16 or (self.core.dtype == torch.bfloat16 and not adapted):
            self.require_private()
            self.model.float()

    def require_private(self) -> None:
        """Refuse to change weights that others hold too.

        Raises:
            RuntimeError: the model is shared.
        """
        if self.shared:
            raise RuntimeError("the weights of a shared model are not changed: lease it `rounded`, or `trainable`")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout; afterwards the model is in the mode it was in."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

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
