"""A model and its tokenizer from a ``.gguf`` file, as a plain float model in memory.

transformers de-quantises the file; this room sees to it that nothing is lost on the way without a
word. An architecture is let in once its logits were compared with an independent reading of the
same file (``tests/unit/cutting/test_gguf_real.py``), and a file only if all that it says about its
model is read: a tensor or a setting that the loader would skip is an error that names it.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import InputError, RecipeError
from limbeck.formats.gguf_header import Header, read_header
from limbeck.models.folders.saved import quiet
from limbeck.pruning.architectures import rebuild

_DOWNLOAD = "Download it again"
_TENSORS = frozenset({"token_embd.weight", "output_norm.weight", "output.weight"})
_BLOCK = frozenset(
    f"{part}.weight"
    for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
)
_SETTINGS = frozenset(
    {
        "context_length",
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
    }
)


@dataclass(frozen=True)
class _Proven:
    """What a file of a proven architecture may hold, and settings that only one value is proven for."""

    block: frozenset[str] = _BLOCK
    settings: frozenset[str] = _SETTINGS
    only: Mapping[str, int] = field(default_factory=dict)


PROVEN: Mapping[str, _Proven] = {
    "llama": _Proven(),
    "gemma3": _Proven(
        block=_BLOCK | {f"{n}.weight" for n in ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")},
        settings=_SETTINGS | {"attention.sliding_window"},
        # The file does not say by what queries are scaled; 256 it is where heads are 256 wide.
        only={"attention.key_length": 256},
    ),
}

# How text is split before byte-pair merges, by the file's `tokenizer.ggml.pre`. transformers 5.24
# knows no "smollm" and would leave GPT-2's split, which keeps the space before a number apart from
# the run it belongs to: "  12" would get other tokens than the model was trained on.
_SPLITS: Mapping[str, Any] = {
    "default": None,
    "gpt-2": None,
    "llama-bpe": None,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}


@dataclass(frozen=True)
class GgufFacts:
    """What a file says of itself, for the run's record: how coarsely its weights were stored.

    Attributes:
        path: the file.
        name: the model's, as the file has it.
        architecture: as GGUF calls it.
        tensors: number of tensors by type (``Q4_1``, ``F32``, ...).
        weights: number of weights by type.
        bits_per_weight: of the whole file's tensors, scales and offsets included.
    """

    path: str
    name: str
    architecture: str
    tensors: Mapping[str, int]
    weights: Mapping[str, int]
    bits_per_weight: float

    def line(self) -> str:
        """One line for people: what the teacher was before it was rounded is not in the file."""
        total = sum(self.weights.values())
        parts = ", ".join(
            f"{count / total:.0%} of the weights as {kind} ({self.tensors[kind]} tensors)"
            for kind, count in sorted(self.weights.items(), key=lambda item: -item[1])
        )
        return f"{self.name or self.path}: {total:,} weights at {self.bits_per_weight:.2f} bits each: {parts}"


@dataclass(frozen=True)
class GgufModel:
    model: Any
    tokenizer: Any
    facts: GgufFacts


def load_gguf(path: str | Path, *, dtype: torch.dtype = torch.float32) -> GgufModel:
    """De-quantise a file into a transformers model; the tokenizer is the file's own.

    Memory: the weights in float32 while they are read, then in ``dtype``.

    Raises:
        InputError: no such file, not a GGUF file, a truncated one, an architecture that is not
            proven, or one that says what would not be read.
        RecipeError: the packages that read it are not installed.
    """
    path = Path(path)
    for needed in ("gguf", "accelerate"):
        if find_spec(needed) is None:
            raise RecipeError(f"reading a .gguf file needs the package {needed}", fix=f"pip install {needed}")
    facts, split, header = inspect_gguf(path)

    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    quiet()
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            loaded, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
            # AutoTokenizer would only parse the file once more, to find this class or one as good.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # its checks are over; what is left differs by transformers' version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path.name} cannot be loaded ({reason})", fix="Name a folder with safetensors weights instead"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:  # transformers initialises them at random
        raise InputError(f"{path.name} lacks {missing[0]} and {len(missing) - 1} others", fix=_DOWNLOAD)
    if split is not None:
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(pre_tokenizers, split)
    # Not every transformers 5 takes them from the file: 5.17 ends texts with the tokenizer class's own mark, and
    # takes spaces before full stops out of what is decoded.
    tokenizer.clean_up_tokenization_spaces = False
    for mark, name in _MARKS.items():
        token_id = header.fields.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(tokenizer):
            setattr(tokenizer, mark, tokenizer.convert_ids_to_tokens(token_id))
    # The mark of quantisation is on the configuration and on the model: save_pretrained refuses
    # both, so the weights go into a new model.
    config = loaded.config
    del config.quantization_config
    return GgufModel(rebuild(loaded, config, loaded.state_dict(), copies=False), tokenizer, facts)


_MARKS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""The tokenizer's special tokens, and what the file calls them."""


def _pre_tokenizer(room: Any, spec: dict[str, Any]) -> Any:
    parts = [
        getattr(room, part["type"])(**{name: value for name, value in part.items() if name != "type"})
        for part in spec["pretokenizers"]
    ]
    return room.Sequence(parts)


def inspect_gguf(path: Path) -> tuple[GgufFacts, Any, Header]:
    """Read the header; refuse what would not load whole. Returns the pre-tokenizer to put in, or None, beside it."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", fix="Name a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path.name} is not a GGUF file", fix=_DOWNLOAD)
    try:
        header = read_header(path)
    except ValueError as error:
        raise InputError(f"{path.name} cannot be read: {error}", fix=_DOWNLOAD) from None
    held = path.stat().st_size
    if held < header.size:
        raise InputError(f"{path.name} is truncated: it has {held:,} of {header.size:,} bytes", fix=_DOWNLOAD)
    kind = str(header.fields.get("general.architecture"))
    proven = PROVEN.get(kind)
    if proven is None:
        raise InputError(
            f"{path.name} holds the architecture `{kind}`, whose loading is not proven",
            fix=f"Proven are {', '.join(PROVEN)}; for another, name a folder with safetensors weights",
        )
    split = str(header.fields.get("tokenizer.ggml.pre", "default"))
    ignored = _ignored(header, kind, proven, split)
    if ignored:
        raise InputError(
            f"{path.name} has {ignored}, which would be ignored",
            fix="Name a folder with safetensors weights instead",
        )
    if not header.tensors:
        raise InputError(f"{path.name} holds no weights", fix="Name a file with a whole model")
    absent = _absent(header, kind, proven)
    if absent:
        raise InputError(f"{path.name} lacks {absent}", fix=_DOWNLOAD)
    tensors, weights = Counter(t.kind for t in header.tensors), Counter[str]()
    for tensor in header.tensors:
        weights[tensor.kind] += tensor.weights
    bits = 8 * sum(t.n_bytes for t in header.tensors) / weights.total()
    name = str(header.fields.get("general.name", ""))
    return GgufFacts(str(path), name, kind, dict(tensors), dict(weights), bits), _SPLITS.get(split), header


def _absent(header: Header, kind: str, proven: _Proven) -> str | None:
    """The first tensor that a whole model has and this file does not, in words. The head may be the embedding."""
    held = {tensor.name for tensor in header.tensors}
    blocks = header.fields.get(f"{kind}.block_count")
    if not isinstance(blocks, int) or blocks < 1:
        return f"a setting `{kind}.block_count`"
    wanted = [*sorted(_TENSORS - {"output.weight"})]
    wanted += [f"blk.{i}.{part}" for i in range(blocks) for part in sorted(proven.block)]
    return next((f"the tensor `{name}`" for name in wanted if name not in held), None)


def _ignored(header: Header, kind: str, proven: _Proven, split: str) -> str | None:
    """The first setting in the file that would be ignored, in words."""
    for tensor in header.tensors:
        block = re.fullmatch(r"blk\.\d+\.(.+)", tensor.name)
        if block[1] not in proven.block if block else tensor.name not in _TENSORS:
            return f"a tensor `{tensor.name}`"
    for name, value in header.fields.items():
        setting = name.removeprefix(f"{kind}.")
        if setting != name and setting not in proven.settings:
            return f"a setting `{name}` ({value})"
    for setting, wanted in proven.only.items():
        value = header.fields.get(f"{kind}.{setting}")
        if value != wanted:
            return f"a setting `{kind}.{setting}` of {value}, not {wanted}"
    if header.fields.get("tokenizer.ggml.model") == "gpt2" and split not in _SPLITS:
        return f"a way of splitting text, `{split}`"
    return None
