"""A causal language model seen as what distillation needs: hidden states, and a head.

The logits of a whole batch are never made; ``objectives`` joins hidden states and head a chunk at
a time. That the pieces found here really make the model's own logits is proven on loading.

Shape letters: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.models.tokenizer import OTHER, vocabulary_size
from limbeck.objectives.targets import Dense

PROJECTIONS = "limbeck_projections"
"""Where a learner keeps the projections of its hidden states while it trains; never saved."""


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
        self.vocab_size = vocabulary_size(tokenizer)
        # A teacher may have another vocabulary of its own than the run (models/restricted.py).
        self.own_tokenizer, self.own_vocab_size = tokenizer, self.vocab_size

    @property
    def core(self) -> Any:
        """The transformers model itself, adapters inside it if there are any."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

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

    def bytes(self) -> int:
        """Bytes of the weights as they are held."""
        return sum(p.numel() * p.element_size() for p in self._own())

    def _own(self) -> list[Tensor]:
        """The model's parameters without what only training adds."""
        added = ("lora_", f"{PROJECTIONS}.")
        return [p for name, p in self.model.named_parameters() if not any(part in name for part in added)]

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D]. Documents packed into a row do not see each other:
        where a position does not follow its neighbour's, a new one begins."""
        return self._decode(ids_BT, positions_BT).last_hidden_state

    def hidden_of_layers(self, ids_BT: Tensor, positions_BT: Tensor, layers: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states (the final norm is in them), and those after each of ``layers`` (from 0), all [B, T, D].

        After the last layer, too, they are what it gives to the final norm, so that they compare with those
        after any other layer.
        """
        before_norm: list[Tensor] = []
        norm = getattr(self.core.get_decoder(), "norm", None)
        hook = norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0])) if norm is not None else None
        try:
            out = self._decode(ids_BT, positions_BT, output_hidden_states=True)
        finally:
            if hook is not None:
                hook.remove()
        states = [*out.hidden_states[1:-1], before_norm[0] if before_norm else out.hidden_states[-1]]
        return out.last_hidden_state, [states[layer] for layer in layers]

    @property
    def n_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    def _decode(self, ids_BT: Tensor, positions_BT: Tensor, **more: Any) -> Any:
        return self.core.get_decoder()(
            input_ids=self.own_ids(ids_BT), position_ids=positions_BT, use_cache=False, **more
        )

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
        layer = self.core.get_output_embeddings()
        config = self.config
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return Head(layer.weight, getattr(layer, "bias", None), getattr(config, "final_logit_softcapping", None), scale)

    @torch.no_grad()
    def prove(self, key: str) -> None:
        """Check on real forward passes that head and hidden states make this model's logits, and
        whether documents packed into one row stay apart; sets ``self.packs``.

        Raises:
            RecipeError: the architecture does something to its logits that is not known here.
        """
        training = self.model.training
        self.model.eval()
        ids = torch.arange(7, device=self.device)[None] % self.vocab_size
        positions = torch.arange(7, device=self.device)[None]
        hidden = self.hidden(ids, positions)
        logits = self.head().logits(hidden)
        theirs = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        if not bool(torch.isfinite(theirs).all()):
            raise RecipeError(
                "its logits are not finite: the weights hold NaN or infinity", key=key, fix="Use whole weights"
            )
        spread = float((theirs - theirs.mean()).abs().max()) + 1e-6
        if logits.shape != theirs.shape or float((logits - theirs).abs().max()) > 0.02 * spread:
            raise RecipeError(
                f"{type(self.core).__name__} changes its logits in a way limbeck does not know",
                key=key,
                fix="Use another architecture for this model",
            )
        together = torch.cat([ids[:, :3], ids[:, 1:5]], 1)
        packed = self.hidden(together, torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=self.device))[:, 3:]
        apart = self.hidden(ids[:, 1:5], positions[:, :4])
        self.packs = bool(
            torch.allclose(packed.float(), apart.float(), rtol=0.05, atol=0.02 * float(apart.abs().max()))
        )
        self.model.train(training)

    def hold_in_bfloat16(self) -> None:
        """Round the linear layers of a model that does not learn, once.

        Autocast rounds them to the same numbers, but keeps what it rounded only of weights that learn: a frozen
        teacher's would be rounded anew in every forward pass. The head, which may be tied, is the objective's.
        """
        head = self.core.get_output_embeddings()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.to(torch.bfloat16)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
