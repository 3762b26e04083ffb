"""Tokenizers: loaded or trained, and compared by their token maps, never by their names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError
from limbeck.models.folders.saved import model_places, one_line

END = "<|endoftext|>"
OTHER = "<|other|>"
"""The token of a cut vocabulary that stands for all that were dropped; predicted, never written."""


def load_tokenizer(path: str, *, revision: str | None = None) -> Any:
    """A fast tokenizer from a folder or hub name.

    Raises:
        RecipeError: there is none, or a slow one.
    """
    from transformers import AutoTokenizer

    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not Path(path).exists():
        fix = "Write it out: ~ is not expanded here" if path.startswith("~") else "Check the path"
        raise RecipeError(f"there is no folder {path}", fix=fix)  # the hub need not be asked
    tokenizer: Any = None
    failed: list[Exception] = []
    for place, its_revision in model_places(path, revision):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=its_revision, trust_remote_code=False)
            break
        except Exception as error:  # OSError, ValueError, KeyError, ... depending on what is missing
            failed.append(error)
    if tokenizer is None:
        where = "the folder holds no tokenizer" if Path(path).is_dir() else f"there is no tokenizer at {path}"
        raise RecipeError(f"{where} ({one_line(failed[0])})", fix="Name a folder with a tokenizer.json") from None
    if not tokenizer.is_fast:
        raise RecipeError("a slow tokenizer has no offsets", fix="Convert it to a tokenizer.json")
    for how in ("is_local", "local_files_only"):  # how it was found here says nothing of it, yet would be saved
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE without pre-set vocabulary: lossless for any text, one special token.

    ``<|endoftext|>`` both opens and closes documents, as in GPT-2. Deterministic.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, bos_token=END, pad_token=END)


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the greatest id a token has: what a model's softmax has to cover."""
    return max(tokenizer.get_vocab().values()) + 1


def token_map_fingerprint(tokenizer: Any) -> str:
    """Hash of the map from token to id. Equal maps may be compared id by id."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def require_equal_maps(ours: Any, theirs: Any) -> None:
    """Refuse to compare two vocabularies by id unless their token maps are equal.

    Raises:
        RecipeError: names the first token that differs.
    """
    a, b = ours.get_vocab(), theirs.get_vocab()
    if a == b:
        return
    differing = next((token for token in sorted(a.keys() | b.keys()) if a.get(token) != b.get(token)), "")
    raise RecipeError(
        f"its vocabulary ({len(b)} tokens) is not the teacher's ({len(a)} tokens): "
        f"{differing!r} is {b.get(differing, 'absent')} here and {a.get(differing, 'absent')} there",
        fix="Use a student with the teacher's tokenizer, or a `config`",
    )
