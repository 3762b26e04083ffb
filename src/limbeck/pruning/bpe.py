"""A byte-pair tokenizer with some of its tokens: rebuilt so that kept text keeps its ids.

Why a token's parts have to stay: the tokenizer joins pieces of a word, always the pair whose merge
comes first in its list. Where the result is a token t, no merge crossed t's borders, so inside them
the very merges ran that make t from its characters alone. With all of those merges and their
pieces kept, in their order, and nothing added, every step on a text whose tokens are all kept is
the step that was taken before: at each one the first possible merge is still there, and no earlier
one is. So the tokenisation of such a text is the old one; other text falls into smaller pieces, at
worst characters or bytes. ``closure`` adds those parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from limbeck.errors import RecipeError


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, as byte-level vocabularies spell them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


@dataclass(frozen=True)
class Bpe:
    """What a tokenizer.json says about a byte-pair model. ``vocab`` includes added tokens."""

    raw: dict[str, Any]
    vocab: dict[str, int]
    added: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Any) -> Bpe:
        """Read a fast tokenizer.

        Raises:
            RecipeError: it is of another kind than byte-pair encoding with bytes to fall back on.
        """
        raw = json.loads(tokenizer.backend_tokenizer.to_str())
        model = raw["model"]
        if model["type"] != "BPE":
            raise RecipeError(
                f"limbeck cannot cut a vocabulary of the kind {model['type']}",
                fix="It knows byte-pair encoding; leave `vocabulary` out",
            )
        for odd in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(odd):
                raise RecipeError(
                    f"limbeck cannot cut a byte-pair vocabulary with `{odd}`", fix="Leave `vocabulary` out"
                )
        added = {token["content"]: token["id"] for token in raw["added_tokens"]}
        bpe = cls(raw, {**model["vocab"], **added}, added)
        if len(bpe.bytes) < 2:
            raise RecipeError(
                "the vocabulary has no tokens for bytes: text outside the kept tokens would be lost",
                fix="Leave `vocabulary` out",
            )
        return bpe

    @cached_property
    def bytes(self) -> set[int]:
        """Ids of the tokens that stand for one byte each: what any text can fall back on.

        With them the mark for a space, where there is one: spelled in bytes it would come back as the
        mark itself, since decoders turn tokens, not bytes, into spaces.
        """
        model = self.raw["model"]
        if model["byte_fallback"]:
            names = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁"]
        elif "ByteLevel" in json.dumps([self.raw["pre_tokenizer"], self.raw["normalizer"]]):
            names = list(byte_alphabet())
        else:
            names = []
        return {model["vocab"][name] for name in names if name in model["vocab"]}

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        return {(a, b): rank for rank, (a, b) in enumerate(map(_pair, self.raw["model"]["merges"]))}

    def parts(self, token: str) -> set[str]:
        """Every piece on the way from the token's characters to the token, both included.

        Empty for what merges never make (added tokens, bytes to fall back on).
        """
        pieces, seen = list(token), set(token)
        while len(pieces) > 1:
            ranked = [(self._ranks.get(pair, -1), i) for i, pair in enumerate(pairwise(pieces))]
            possible = [at for at in ranked if at[0] >= 0]
            if not possible:
                return set()  # merges do not lead here, so no text does
            _, i = min(possible)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            seen.add(pieces[i])
        return seen

    def closure(self, ids: Iterable[int]) -> set[int]:
        """The ids with those of all their parts."""
        vocab, tokens = self.raw["model"]["vocab"], self._tokens
        out = set(ids)
        for token in [tokens[i] for i in out if i in tokens]:
            out.update(vocab[part] for part in self.parts(token) if part in vocab)
        return out

    @cached_property
    def _tokens(self) -> dict[int, str]:
        return {i: token for token, i in self.raw["model"]["vocab"].items()}

    def cut(self, kept: list[int], other: str | None) -> dict[str, Any]:
        """The tokenizer.json of the kept ids (ascending, closed), numbered 0, 1, ... in their order.

        Args:
            kept: ids that stay; must hold its own ``closure``.
            other: content of one more special token, which gets the last id.
        """
        new_id = {old: new for new, old in enumerate(kept)}
        raw = json.loads(json.dumps({k: v for k, v in self.raw.items() if k != "model"}))
        model = dict(self.raw["model"])
        vocab = model["vocab"]
        model["vocab"] = {token: new_id[i] for token, i in vocab.items() if i in new_id}
        model["merges"] = [
            list(pair)
            for pair in map(_pair, model["merges"])
            if all(piece in model["vocab"] for piece in (*pair, pair[0] + pair[1]))
        ]
        raw["model"] = model
        raw["added_tokens"] = [{**t, "id": new_id[t["id"]]} for t in raw["added_tokens"] if t["id"] in new_id]
        if other is not None:
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            raw["added_tokens"].append({"id": len(kept), "content": other, **plain, "special": True})
        raw["post_processor"] = _renumber(raw.get("post_processor"), self.vocab, new_id)
        return raw


def _pair(merge: Any) -> tuple[str, str]:
    """A merge as a pair: older files hold ``"a b"``."""
    a, b = merge.split(" ") if isinstance(merge, str) else merge
    return a, b


def _renumber(part: Any, vocab: dict[str, int], new_id: dict[int, int]) -> Any:
    """A post-processor with new ids: ``{"ids": [..]}`` of templates, ``[token, id]`` of BERT's and RoBERTa's."""
    if isinstance(part, dict):
        return {
            name: [new_id[i] for i in value] if name == "ids" else _renumber(value, vocab, new_id)
            for name, value in part.items()
        }
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and part[1] == vocab.get(part[0]):
            return [part[0], new_id[part[1]]]
        return [_renumber(value, vocab, new_id) for value in part]
    return part


def template_ids(tokenizer: Any) -> set[int]:
    """Ids that the chat template writes around messages, for the conversations that it accepts."""
    if not tokenizer.chat_template:
        return set()
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user", "assistant")]
    found: set[int] = set()
    for conversation in (turns[1:2], turns[1:3], turns[1:], turns[:2], turns):
        for prompt in (False, True):
            try:
                text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt)
            except Exception:  # a template may refuse a role or an order; it then never writes it
                continue
            found.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found
