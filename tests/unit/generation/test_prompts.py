"""Prompts out of documents, requests out of prompts, and chosen answers as documents again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from limbeck.data.chat.encode import MASKED, WORDS, encode, encode_prompt, writes_thoughts
from limbeck.data.documents.document import Document
from limbeck.errors import RecipeError
from limbeck.generation.candidate import Candidate
from limbeck.generation.learned import Learned
from limbeck.generation.local import LocalTeacher, as_document, split_thought
from limbeck.generation.prompts import Prompt, prompt_of, prompts_among, requests_for
from limbeck.generation.request import Completion, Outcome, Request
from limbeck.recipe import Generation, Recipe, parse_recipe

ASKED = ({"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "a"})
ANSWERED = Document(None, (*ASKED, {"role": "assistant", "content": "the cat"}))

PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['reasoning_content'] and loop.last %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|endoftext|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chatting(tokenizer: Any, template: str) -> Any:
    """The tokenizer with a chat template."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


def key_of(document: Document) -> int:
    return int(document.key[:16], 16)


def test_only_documents_of_a_part_ask(tokenizer: Any, texts: list[str]) -> None:
    documents = [Document(text) for text in texts]
    keys = np.array(sorted(key_of(document) for document in documents[:30]), np.uint64)
    found = prompts_among([*documents, *documents], keys, tokenizer, prompt_tokens=4)
    assert len(found) == 30
    assert [prompt.document for prompt in found] == sorted(document.key for document in documents[:30])
    again = prompts_among(reversed(documents), keys, tokenizer, prompt_tokens=4)
    assert again == found, "the order of the files says nothing"


def test_plain_text_is_cut_between_tokens(tokenizer: Any, texts: list[str]) -> None:
    prompt = prompt_of(Document(texts[3]), tokenizer, prompt_tokens=5)
    assert prompt is not None
    assert prompt.text is not None
    assert prompt.reference is not None
    assert prompt.text + prompt.reference == texts[3]
    assert len(tokenizer(prompt.text, add_special_tokens=False)["input_ids"]) == 5
    assert prompt_of(Document("a"), tokenizer, prompt_tokens=5) is None


def test_a_conversation_asks_up_to_its_last_answer(tokenizer: Any) -> None:
    prompt = prompt_of(ANSWERED, tokenizer, prompt_tokens=5, system="Be brief.")
    assert prompt is not None
    assert prompt.messages == ({"role": "system", "content": "Be brief."}, *ASKED)
    assert prompt.reference == "the cat"
    own = Document(None, ({"role": "system", "content": "mine"}, *ANSWERED.messages))
    kept = prompt_of(own, tokenizer, prompt_tokens=5, system="Be brief.")
    assert kept is not None
    assert kept.messages[0]["content"] == "mine"
    assert Prompt.of(prompt.plain()) == prompt
    pair = Document(None, ({"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}), template=False)
    continued = prompt_of(pair, tokenizer, prompt_tokens=5)
    assert continued is not None
    assert (continued.text, continued.reference, continued.messages) == ("1+1=", "2", ())


def test_a_change_buys_only_what_changed() -> None:
    prompt, teacher = Prompt(ASKED, None, (), "x", "d"), {"api": "a", "model": "m"}

    def keys(**settings: Any) -> set[str]:
        return {request.key(teacher) for request in requests_for(prompt, Generation(**settings), 64)}

    assert len(keys(samples=3)) == 3
    assert keys(samples=3) < keys(samples=5)
    assert keys() == keys(verify="exact", keep="all", filters={}, reasoning="drop", max_prompts=7, batch_size=3)
    assert not keys() & keys(temperature=0.5)
    assert not keys() & keys(seed=1)
    assert len(keys(seed=1, samples=2)) == 2
    swapped = Prompt(tuple(dict(reversed(list(m.items()))) for m in ASKED), None, (), "x", "d")
    assert {r.key(teacher) for r in requests_for(swapped, Generation(), 64)} == keys()


def test_the_teacher_alone_is_shown_examples() -> None:
    system = {"role": "system", "content": "Be brief."}
    prompt, generation = (
        Prompt((system, *ASKED), None, (), "x", "d"),
        Generation(examples=[{"prompt": "1+1?", "answer": "2"}], samples=2),
    )
    first, second = requests_for(prompt, generation, 64)
    shown = ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"})
    assert first.messages == second.messages == (system, *shown, *ASKED)
    assert prompt.messages == (system, *ASKED)
    (without,) = requests_for(Prompt(ASKED, None, (), "x", "d"), generation.model_copy(update={"samples": 1}), 64)
    assert without.messages == (*shown, *ASKED)
    with pytest.raises(RecipeError, match="examples stand before conversations"):
        list(requests_for(Prompt((), "Once", (), "x", "d"), generation, 64))


def test_recipes_without_choosing_keep_their_fingerprints() -> None:
    assert set(Generation().model_dump()) == {
        "tokens", "prompt_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "batch_size", "seed"
    }  # fmt: skip
    assert not Generation().is_selected
    assert Generation(keep="all").is_selected
    assert Generation.model_validate(Generation(keep="all", samples=2).model_dump()) == Generation(
        keep="all", samples=2
    )


def candidate(completion: Completion, messages: Any = ASKED, text: str | None = None) -> Candidate:
    return Candidate("p", tuple(messages), text, (), "two", 0, completion, "t", "k")


def learned_text(document: Document, tokenizer: Any) -> tuple[str, str]:
    """What is read, and the words that are learned."""
    found = encode(document, tokenizer)
    words = [i for i, kind in zip(found.ids, found.loss_mask, strict=True) if kind == WORDS]
    read = [i for i, kind in zip(found.ids, found.loss_mask, strict=True) if kind == MASKED]
    return tokenizer.decode(read), tokenizer.decode(words)


@pytest.mark.parametrize("template", [PLAIN, THINKING])
def test_thoughts_come_back_from_the_students_template(tokenizer: Any, template: str) -> None:
    own = chatting(tokenizer, template)
    assert writes_thoughts(own) == (template == THINKING)
    answer = Completion(Outcome.COMPLETE, "the cat", reasoning="it sat on a mat")
    document = Learned(own, "keep").document(candidate(answer))
    read, said = learned_text(document, own)
    assert "it sat on a mat" in said
    assert "the cat" in said
    assert "two" in read, "earlier answers are read, not learned"
    assert "two" not in said
    whole = own.decode(encode(document, own).ids)
    thought, text = split_thought(whole.rpartition("<|assistant|>")[2].removesuffix("<|endoftext|>"))
    assert (thought, text) == (answer.reasoning, answer.text), "what the student writes splits as the teacher's did"
    read, said = learned_text(Learned(own, "drop").document(candidate(answer)), own)
    assert "mat" not in read + said


def test_a_continued_text_is_learned_after_its_prompt(tokenizer: Any) -> None:
    document = Learned(tokenizer, "keep").document(
        candidate(Completion(Outcome.COMPLETE, " sat on a mat"), (), "the cat")
    )
    read, said = learned_text(document, tokenizer)
    assert read.endswith("the cat")
    assert said == " sat on a mat"


def test_what_is_asked_is_what_is_learned_without_the_answer(tokenizer: Any) -> None:
    own = chatting(tokenizer, PLAIN)
    document = Learned(own, "keep").document(candidate(Completion(Outcome.COMPLETE, "the cat")))
    prompt = encode_prompt(as_document(Request(messages=ASKED)), own)
    assert list(encode(document, own).ids)[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
        ("hm</think>yes", ("hm", "yes")),
        ("yes", (None, "yes")),
        ("<think>hm", (None, "<think>hm")),
    ],
)
def test_thoughts_are_split_off(text: str, found: tuple[str | None, str]) -> None:
    assert split_thought(text) == found


def test_a_local_teachers_batch_depends_on_its_requests_alone(make_lm: Any, tokenizer: Any) -> None:
    from contextlib import nullcontext

    lm = make_lm()
    teacher = LocalTeacher({"local": "toy"}, lambda: nullcontext((lm, tokenizer)), batch_size=4)
    requests = [Request(text=f"the cat {i}", max_new_tokens=5, sample=s) for i in range(5) for s in range(2)]
    batches = list(teacher.batches(requests))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    whole = {request.key({}): completion for request, completion in teacher.write(requests)}
    last = {request.key({}): completion for request, completion in teacher.write(batches[2])}
    assert len(whole) == 10
    assert all(whole[key] == completion for key, completion in last.items())
    assert whole[requests[0].key({})].usage is not None
    other = LocalTeacher({"local": "other"}, teacher.opened, batch_size=4)
    assert [c.ids for _, c in other.write(requests)] != [c.ids for _, c in teacher.write(requests)]


def test_stop_texts_end_a_local_answer(make_lm: Any, tokenizer: Any) -> None:
    from contextlib import nullcontext

    lm = make_lm()
    teacher = LocalTeacher({"local": "toy"}, lambda: nullcontext((lm, tokenizer)))
    ((_, free),) = teacher.write([Request(text="the cat", max_new_tokens=12, temperature=0.0)])
    stop = free.text[3:5]
    ((_, stopped),) = teacher.write([Request(text="the cat", max_new_tokens=12, temperature=0.0, stop=(stop,))])
    assert stopped.text == free.text[: free.text.find(stop)]
    assert stopped.outcome is Outcome.COMPLETE


def test_a_control_of_equal_size_names_a_text(raw_recipe: dict[str, Any]) -> None:
    arms = [{"kind": "hard", "name": "right", "generation": {"keep": "all"}}]
    twin = {"kind": "hard", "name": "random", "generation": {"keep": "all", "as_many_as": "right"}}
    assert isinstance(parse_recipe({**raw_recipe, "techniques": [*arms, twin]}), Recipe)
    with pytest.raises(RecipeError, match=r"techniques\.0.*as_many_as.*no technique"):
        parse_recipe({**raw_recipe, "techniques": [{**twin, "generation": {"as_many_as": "soft"}}, "soft"]})
