"""Models, loaded once a process: frozen ones are shared, trained ones are private."""

from __future__ import annotations

import copy
import gc
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import under
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folders.saved import model_places, stored_dtype
from limbeck.models.load import check_positions, load_model
from limbeck.models.restricted import KeptTokens, RestrictedModel
from limbeck.models.tokenizer import load_tokenizer
from limbeck.recipe import PathModel
from limbeck.runtime.world import World


@dataclass(frozen=True)
class ModelRef:
    """Which model, and how its weights are held; equal references share one model.

    Attributes:
        path, revision, dtype, trust_remote_code: as in the recipe.
        rounded: the linear layers are held in bfloat16, for a frozen model under ``precision: bf16``.
    """

    path: str
    revision: str | None = None
    dtype: str = "float32"
    trust_remote_code: bool = False
    rounded: bool = False

    @classmethod
    def of(cls, spec: PathModel, *, rounded: bool = False) -> ModelRef:
        """The model that a section of the recipe names."""
        return cls(spec.path, spec.revision, spec.dtype, spec.trust_remote_code, rounded)

    @property
    def spec(self) -> PathModel:
        named = {"path": self.path, "revision": self.revision, "dtype": self.dtype}
        return PathModel.model_validate({**named, "trust_remote_code": self.trust_remote_code})


Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, size, time of change and inode of each file that a model is loaded from."""


@dataclass
class _Held:
    """A shared model. ``trained``: the names of the parameters that a training would update."""

    lm: CausalLM
    trained: frozenset[str]
    leases: int = 0


class ModelPool:
    """Hands out models, and keeps frozen ones for the next that asks.

    A model is loaded, and proven, once for each reference; what its files held before they were rewritten is never
    handed out. When a new one does not fit, models without a lease are evicted, the least recently used before the
    others. What is needed is estimated from the files, and what is free is asked of the system: a pool cannot promise
    that memory suffices. It belongs to one thread.

    Args:
        world: where models are held. Default: the device of this process.
        budget: bytes that all shared models may take together. None: what is free when one is loaded.

    Attributes:
        loads: how often each path was loaded.
    """

    def __init__(self, world: World | None = None, *, budget: int | None = None) -> None:
        self.world, self.budget = world or World.current(), budget
        self.loads: Counter[str] = Counter()
        self._held: dict[tuple[ModelRef, Stamp], _Held] = {}  # the least recently used first
        self._tokenizers: dict[tuple[str, Stamp, str | None], Any] = {}

    @contextmanager
    def lease(
        self,
        ref: ModelRef,
        *,
        trainable: bool = False,
        tokenizer: Any = None,
        kept: KeptTokens | None = None,
        seq_len: int | None = None,
    ) -> Iterator[CausalLM]:
        """A model, until the block ends.

        Args:
            ref: which.
            trainable: it may be changed: a private copy, in float32 or as its files say. Otherwise it is shared with
                all that lease it: frozen, in evaluation mode, and its weights must not be changed.
            tokenizer: of the ids that it reads. None: its own.
            kept: which of its own tokens ``tokenizer`` has: it is then seen through that smaller vocabulary.
            seq_len: the longest row that it will see.

        Raises:
            RecipeError: it cannot be loaded, or rows are too long; keys are relative to its section (``.path``).
            ValueError: a trainable model is not rounded; a smaller vocabulary needs its tokenizer.
        """
        if trainable and ref.rounded:
            raise ValueError("what is trained is not rounded: most updates would be lost")
        if kept is not None and tokenizer is None:
            raise ValueError("a smaller vocabulary has a tokenizer of its own")
        stamp = stamp_of(ref)
        own = tokenizer
        if kept is not None or tokenizer is None:
            own = self._own_tokenizer(ref, stamp, tokenizer.eos_token if tokenizer is not None else None)
        if trainable:
            yield _view(self._private(ref, stamp, own), own, tokenizer, kept, seq_len)
            return
        held = self._shared(ref, stamp, own)
        with _pinned(held):
            held.lm.eval()
            yield _view(held.lm, own, tokenizer, kept, seq_len)

    def __contains__(self, ref: ModelRef) -> bool:
        """Whether the model is here, as its files are now."""
        return (_local(ref), stamp_of(ref)) in self._held

    def forget(self, which: ModelRef | str) -> None:
        """Let go of all forms of a model, by reference or path. A lease of it keeps it to its end."""
        named = which.path if isinstance(which, ModelRef) else which
        paths = {named, str(Path(named).resolve())}
        self._held = {key: held for key, held in self._held.items() if key[0].path not in paths}
        self._tokenizers = {key: found for key, found in self._tokenizers.items() if key[0] not in paths}
        self._collect()

    def clear(self) -> None:
        """Evict all models without a lease."""
        self._held = {key: held for key, held in self._held.items() if held.leases}
        self._tokenizers.clear()
        self._collect()

    def held_bytes(self) -> int:
        """Bytes of all shared models; weights that two of them share count once."""
        return sum({id(t): t.nbytes for held in self._held.values() for t in _tensors(held.lm)}.values())

    def _shared(self, ref: ModelRef, stamp: Stamp, tokenizer: Any) -> _Held:
        local = _local(ref)
        stale = [k for k in self._held if (k[0].path, k[0].revision) == (local.path, local.revision) and k[1] != stamp]
        for key in stale:
            del self._held[key]
        held = self._held.pop((local, stamp), None)
        if held is None:
            lm = self._rounded(ref, stamp, tokenizer) if ref.rounded else self._load(ref, tokenizer)
            trained = frozenset(name for name, p in lm.model.named_parameters() if p.requires_grad)
            lm.requires_grad_(False)
            lm.shared, held = True, _Held(lm, trained)
            stamp = stamp or stamp_of(ref)  # a name on the hub: its files are here only now
        self._held[local, stamp] = held
        return held

    def _private(self, ref: ModelRef, stamp: Stamp, tokenizer: Any) -> CausalLM:
        held = self._held.get((_local(ref), stamp))
        if held is None:
            return self._load(ref, tokenizer)
        with _pinned(held):
            self._make_room(sum(t.nbytes for t in _tensors(held.lm)))
            model = copy.deepcopy(held.lm.model)
        for name, p in model.named_parameters():
            p.requires_grad_(name in held.trained)
        lm = CausalLM(model.eval(), tokenizer)
        lm.traits = held.lm.traits
        return lm

    def _rounded(self, ref: ModelRef, stamp: Stamp, tokenizer: Any) -> CausalLM:
        """A copy of the shared model with linear layers in bfloat16; all other weights are one with the model's."""
        held = self._shared(replace(ref, rounded=False), stamp, tokenizer)
        with _pinned(held):
            linear = {id(p): p for layer in held.lm.linear_layers() for p in layer.parameters()}
            self._make_room(sum(2 * p.numel() for p in linear.values()))
            copied: dict[int, Any] = {id(p): p for p in held.lm.model.parameters()}
            for key, p in linear.items():
                if p.is_floating_point():
                    copied[key] = nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=p.requires_grad)
            lm = CausalLM(copy.deepcopy(held.lm.model, copied), tokenizer)
        lm.traits = held.lm.traits
        return lm

    def _load(self, ref: ModelRef, tokenizer: Any) -> CausalLM:
        self._make_room(_estimate(ref))
        self.loads[ref.path] += 1
        return load_model(ref.spec, tokenizer, device=self.world.device)

    def _make_room(self, needed: int) -> None:
        for key in [key for key, held in self._held.items() if not held.leases]:
            if needed <= self._room():
                return
            del self._held[key]
            self._collect()

    def _room(self) -> int:
        return self.world.free_memory() if self.budget is None else self.budget - self.held_bytes()

    def _collect(self) -> None:
        gc.collect()  # models hold cycles
        self.world.release_memory()

    def _own_tokenizer(self, ref: ModelRef, stamp: Stamp, eos_token: str | None) -> Any:
        """The model's tokenizer, with another EOS token if one is named: it says where the model stops."""
        key = (_local(ref).path, stamp, eos_token)
        if key not in self._tokenizers:
            with under(".path"):
                found = load_tokenizer(ref.path, revision=ref.revision)
            if eos_token is not None:
                found.eos_token = eos_token
            self._tokenizers[key] = found
        return self._tokenizers[key]


def _view(lm: CausalLM, own: Any, tokenizer: Any, kept: KeptTokens | None, seq_len: int | None) -> CausalLM:
    """A model with the tokenizers of a lease; the weights are those of ``lm``."""
    view = CausalLM(lm.model, own)
    view.traits, view.shared = lm.traits, lm.shared
    check_positions(view, seq_len)
    return view if kept is None else RestrictedModel(view, kept, tokenizer)


@contextmanager
def _pinned(held: _Held) -> Iterator[None]:
    """A model is not let go of while it is copied."""
    held.leases += 1
    try:
        yield
    finally:
        held.leases -= 1


def _tensors(lm: CausalLM) -> list[torch.Tensor]:
    return [*lm.model.parameters(), *lm.model.buffers()]


def _local(ref: ModelRef) -> ModelRef:
    """The reference with one spelling of its folder."""
    return replace(ref, path=str(Path(ref.path).resolve())) if Path(ref.path).is_dir() else ref


def _folders(ref: ModelRef) -> list[Path]:
    """Folders on this machine that hold a model's files; of an adapter, also its base's."""
    from huggingface_hub import snapshot_download

    found = []
    for path, revision in model_places(ref.path, ref.revision):
        if Path(path).is_dir():
            found.append(Path(path))
            continue
        try:
            found.append(Path(snapshot_download(path, revision=revision, local_files_only=True)))
        except (OSError, ValueError):  # no name on the hub, or not downloaded yet
            continue
    return found


def stamp_of(ref: ModelRef) -> Stamp:
    """What tells that files were rewritten; of an adapter, its base's too. Replaced folders have other inodes, whatever
    their times say. Empty for a name on the hub that is not downloaded yet."""
    found = []
    for folder in _folders(ref):
        for file in sorted(each for pattern in ("*.safetensors", "*.json") for each in folder.glob(pattern)):
            stat = file.stat()
            found.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


def _estimate(ref: ModelRef) -> int:
    """Bytes that a model takes once it is loaded, about: of its weight files, in the dtype that is asked for."""
    total = 0.0
    for folder in _folders(ref):
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        try:
            stored = stored_dtype(PathModel(path=str(folder)))
        except (OSError, ValueError, KeyError, struct.error):  # a torn file: loading the model says so
            stored = None
        growth = 1.0
        if stored is not None and ref.dtype != "auto":
            growth = getattr(torch, ref.dtype).itemsize / getattr(torch, stored).itemsize
        total += size * growth
    return int(total)
