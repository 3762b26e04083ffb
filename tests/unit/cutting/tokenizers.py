"""Toy tokenizers of every build that the vocabulary cut knows, trained on the same few words."""

from __future__ import annotations

import json
from typing import Any

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ["<|im_start|>", "<|im_end|>"]
TEXTS = [
    "the cat sat on the mat and the dog sat with the cat",
    "a user and an assistant, kind to a system; be kind be kind",
    "there there, then the other mother brother bother",
    "once upon a time there was a little girl named Lily. Once upon a time!",
    "banana bandana ananas; 1234 12 34 5 + 5 = 10",
    "naïve café, Straße, 日本語の日本, Жили-были дед да баба, 😀😀",
    "def f(x):\n    return x\n\n\ndef g(y):\n        return y",
]


def byte_level(size: int = 420, ignore_merges: bool = False, outside: bool = False) -> Any:
    """GPT-2's kind. ``outside``: special tokens are added after the vocabulary, as Qwen's are, not within it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", *TURNS, "<unused>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[] if outside else specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    if outside:
        core.add_special_tokens(specials)
    raw = json.loads(core.to_str())
    raw["model"]["ignore_merges"] = ignore_merges
    names = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), **names)
    tokenizer.chat_template = CHATML
    return tokenizer


def sentencepiece(size: int = 200) -> Any:
    """Gemma's kind: characters first, bytes to fall back on, spaces as ▁, the whole text one word, <bos> in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    core.train_from_iterator(TEXTS[:5] * 3, trainer)
    raw = json.loads(core.to_str())
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<unused1>", *(f"<0x{b:02X}>" for b in range(256))]
    learned = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].__getitem__)
    raw["model"]["vocab"] = {token: i for i, token in enumerate([*tokens, *learned])}
    core = Tokenizer.from_str(json.dumps(raw))
    core.add_special_tokens(tokens[:6])
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


BUILDS = {
    "byte_level": byte_level,
    "ignore_merges": lambda: byte_level(ignore_merges=True),
    "outside": lambda: byte_level(outside=True),
    "sentencepiece": sentencepiece,
}
