"""What limbeck makes of the data: what it recognises, and the first documents with what is learned of them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from limbeck.data.chat.encode import MARK, WORDS, Encoded, encode_batch, template_facts
from limbeck.data.documents.control import Control
from limbeck.data.documents.document import Document
from limbeck.data.documents.seen import Seen
from limbeck.data.documents.sources import first_documents
from limbeck.models.folders.saved import quiet
from limbeck.pipeline.build import run_tokenizer
from limbeck.recipe import Recipe

STYLES = {WORDS: "bold green", MARK: "bold yellow"}
READ = "dim"
BRACKETS = ("⟦", "⟧")
LONGEST = 1500  # tokens of a document that are shown


def show_data(recipe: Recipe, count: int, console: Console) -> None:
    """Print, of every source on this machine, what it was recognised as and its first ``count`` documents, token by
    token. No weights are loaded.

    Raises:
        RecipeError, InputError: a source or the tokenizer cannot be read, or a document cannot be rendered.
    """
    quiet()
    tokenizer = run_tokenizer(recipe)
    seen: dict[str, Seen] = {}
    found = list(first_documents(recipe.data.corpus, max(count, 1), seen))
    plain = not console.is_terminal  # then labels stand in brackets
    legend = Text.assemble(("read", READ), " · ", ("learned", STYLES[WORDS]), " · ", ("learned: marks", STYLES[MARK]))
    if plain:
        legend = Text(f"what is learned stands in {BRACKETS[0]} {BRACKETS[1]}")
    for key, here in seen.items():
        console.print(Text.assemble((key, "bold"), f", first documents: {here.line()}"))
        if left_out := here.left_out():
            console.print(Text(f"  left out: {left_out}", "yellow"))
        for doubt in here.doubts():
            console.print(Text(f"! {key}: {doubt}", "yellow"))
    duplicates = len(found) - len({document.key for _, document in found})
    if duplicates:
        console.print(Text(f"{duplicates:,} of them are duplicates: a run keeps one of equal documents", "yellow"))
    control = Control(tokenizer)
    for _, document in found:
        control.count(document)
    for remark in control.remarks():
        console.print(Text(f"! {remark}", "yellow"))
    if tokenizer is None:
        console.print(Text("The tokenizer is still to be trained on this corpus: texts are shown as they are.", READ))
        for key, document in found[: count if count else 0]:
            console.print(Text(f"\n{key}, document {document.key[:12]}", "bold"))
            console.print(_visible("\n".join(document.texts())))
        return
    if (date := template_facts(tokenizer, recipe.data.date)["date"]) is not None:
        console.print(Text(f"The chat template can write a date: it is told {date} (data.date).", READ))
    if not count:
        return
    console.print(legend)
    encoded = encode_batch([document for _, document in found], tokenizer, recipe.data.date)
    for (key, document), each in zip(found, encoded, strict=True):
        console.print(Text(f"\n{key}, document {document.key[:12]}: {_counts(each)}", "bold"))
        if len(each.ids) - 1 > recipe.data.seq_len:
            console.print(Text(f"! longer than data.seq_len ({recipe.data.seq_len}): it is cut into rows", "yellow"))
        console.print(_tokens(each, tokenizer, plain=plain))
        for remark in sorted(each.remarks):
            console.print(Text(f"! {remark}", "yellow"))
        if document.text is None and not _learned(document):
            console.print(Text("! nothing of it is learned", "yellow"))


def _learned(document: Document) -> bool:
    return any(m["role"] == "assistant" and m.get("learn", True) for m in document.messages)


def _counts(encoded: Encoded) -> str:
    words, marks = encoded.loss_mask.count(WORDS), encoded.loss_mask.count(MARK)
    labels = f"{words + marks:,} labels ({marks:,} of them marks)"
    return f"{len(encoded.ids):,} tokens, {labels}, {encoded.n_bytes:,} bytes of words"


def _tokens(encoded: Encoded, tokenizer: Any, *, plain: bool) -> Text:
    """Runs of tokens of one kind, decoded together, so that a character of several tokens stays whole."""
    shown = Text()
    ids, mask = encoded.ids[:LONGEST], encoded.loss_mask[:LONGEST]
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or mask[i] != mask[start]:
            before, after = BRACKETS if plain and mask[start] in STYLES else ("", "")
            text = _visible(tokenizer.decode(ids[start:i]), STYLES.get(mask[start], READ))
            shown.append(before).append_text(text).append(after)
            start = i
    if len(encoded.ids) > LONGEST:
        shown.append(f" … {len(encoded.ids) - LONGEST:,} more tokens", READ)
    return shown


def _visible(text: str, style: str = "") -> Text:
    """Text as it stands: no markup, no control character, no bracket that means a label; a line end is shown and
    taken."""
    return Text("".join(map(_shown, text)), style)


def _shown(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    if character in BRACKETS or not character.isprintable():
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character
