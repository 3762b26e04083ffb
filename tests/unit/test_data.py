from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.chat.encode import MARK, MASKED, WORDS, Encoded, encode, encode_batch, words_asked
from limbeck.data.corpus import Corpus, open_corpus, write_encoded
from limbeck.data.documents.document import Document
from limbeck.data.documents.sources import documents
from limbeck.data.packing import IGNORED, Rows, collate, row_order
from limbeck.data.prompts import prompts_of, split_prompt
from limbeck.errors import InputError, LimbeckError
from limbeck.recipe import JsonlSource, ParquetSource, StdlibSource, TextSource

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus_of(rows: list[tuple[list[int], list[bool]]]) -> Corpus:
    lengths = np.array([len(ids) for ids, _ in rows], np.int64)
    return Corpus(
        ids=np.array([i for ids, _ in rows for i in ids], np.uint32),
        loss_mask=np.array([flag for _, learn in rows for flag in learn], np.uint8),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        n_bytes=np.ones(len(rows), np.int64),
        keys=np.arange(len(rows), dtype=np.uint64),
    )


# --------------------------------------------------------------------------------------- packing


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=12),
    seq_len=st.integers(1, 9),
    pack=st.booleans(),
    seed=st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_every_token_is_predicted_once_from_its_own_past(
    lengths: list[int], seq_len: int, pack: bool, seed: int
) -> None:
    """The invariant of shifting, on any corpus: label = next token of the same document, exactly once."""
    rng = np.random.default_rng(seed)
    rows, number = [], 1
    for length in lengths:  # ids are unique, so a token says where it stands
        rows.append((list(range(number, number + length)), rng.random(length).tolist()))
        number += length
    rows = [(ids, [flag > 0.3 for flag in learn]) for ids, learn in rows]
    document = {i: d for d, (ids, _) in enumerate(rows) for i in ids}
    due = sorted(i for ids, learn in rows for i, flag in list(zip(ids, learn, strict=True))[1:] if flag)
    cut = Rows(corpus_of(rows), seq_len, pack=pack)
    predicted = []
    for r in range(len(cut)):
        batch = collate([cut[r]])
        assert batch.ids_BT.shape[1] <= seq_len
        assert batch.count() == cut.count(r)
        for i, label, segment, position in zip(
            batch.ids_BT[0].tolist(),
            batch.labels_BT[0].tolist(),
            batch.segments_BT[0].tolist(),
            batch.positions_BT[0].tolist(),
            strict=True,
        ):
            assert segment >= 0
            assert position >= 0
            if label != IGNORED:
                assert label == i + 1
                assert document[label] == document[i]
                predicted.append(label)
    assert sorted(predicted) == due


def test_collate_pads_on_the_right_and_restarts_positions() -> None:
    rows = Rows(corpus_of([([1, 2, 3], [True] * 3), ([4, 5], [True] * 2), ([6, 7, 8, 9], [True] * 4)]), 4, pack=True)
    batch = collate([rows[0], rows[1]])
    assert batch.ids_BT.tolist() == [[1, 2, 4, 6], [7, 8, 0, 0]]
    assert batch.labels_BT.tolist() == [[2, 3, 5, 7], [8, 9, IGNORED, IGNORED]]
    assert batch.positions_BT.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert batch.segments_BT.tolist() == [[0, 0, 1, 2], [0, 0, -1, -1]]


def test_the_first_response_token_is_learned_and_nothing_past_the_end() -> None:
    """Prompt 1 2 3, response 4 5: the position of 3 predicts 4; the position of 5 predicts nothing."""
    rows = Rows(corpus_of([([1, 2, 3, 4, 5], [False, False, False, True, True])]), 8, pack=False)
    batch = collate([rows[0]])
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4]]
    assert batch.labels_BT.tolist() == [[IGNORED, IGNORED, 4, 5]]


@given(
    shapes=st.lists(
        st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    seq_len=st.integers(1, 12),
    pack=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_answers_that_rows_take_from_their_questions_are_counted(
    shapes: list[list[tuple[int, int]]], seq_len: int, pack: bool
) -> None:
    """Against what every row holds: a label and not all tokens from the end of the answer before on."""
    documents: list[tuple[list[int], list[bool]]] = [(list(range(900, 930)), [False] + [True] * 29)]  # plain text
    question_of, answer_of, number = {}, {}, 1_000
    for answer, shape in enumerate(shapes):
        ids: list[int] = []
        mask: list[bool] = []
        for turn, (asked, said) in enumerate(shape):
            asked += not turn  # a conversation begins with more than one token that is read
            for i in range(number + asked, number + asked + said):
                question_of[i], answer_of[i] = number, (answer, turn)
            ids += range(number, number + asked + said)
            mask += [False] * asked + [True] * said
            number += asked + said
        documents.append((ids, mask))
    rows = Rows(corpus_of(documents), seq_len, pack=pack)
    torn = set()
    for r in range(len(rows)):
        for piece in rows[r].pieces:
            learned = zip(piece.ids.tolist()[1:], piece.mask.tolist()[1:], strict=True)
            labels = [i for i, flag in learned if flag]
            torn |= {answer_of[i] for i in labels if i in answer_of and piece.ids[0] > question_of[i]}
    cuts = rows.cuts()
    assert cuts.answers == len(torn)
    assert cuts.documents == len(documents)
    assert cuts.longer == sum(len(ids) - 1 > seq_len for ids, _ in documents)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_every_token_of_a_batch_says_where_it_stands_in_its_document(pack: bool) -> None:
    documents = [([1, 2, 3], [True] * 3), ([4], [True]), ([5, 6, 7, 8, 9, 10], [False, True] * 3)]
    corpus = replace(corpus_of(documents), keys=np.array([3, 2**63 + 1, 2**64 - 1], np.uint64))
    rows = Rows(corpus, 4, pack=pack)
    batch = collate([rows[r] for r in range(len(rows))])
    by_key = {int(key): corpus.document(d)[0].tolist() for d, key in enumerate(corpus.keys)}
    assert batch.keys_BT.dtype == torch.int64
    for row in zip(*(t.tolist() for t in vars(batch).values()), strict=True):
        begun = -1
        for token, position, segment, label, _, key, offset in zip(*row, strict=True):
            if segment < 0:
                assert (key, offset) == (0, -1)
                continue
            ids = by_key[key % 2**64]
            assert ids[offset] == token
            assert label in (ids[offset + 1], IGNORED)
            begun = offset if position == 0 else begun
            assert offset - position == begun


def test_the_order_is_a_permutation_every_epoch_and_follows_the_seed() -> None:
    order = row_order(7, 3)
    first, second = [next(order) for _ in range(7)], [next(order) for _ in range(7)]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    again = row_order(7, 3)
    assert first == [next(again) for _ in range(7)]


# ----------------------------------------------------------------------------------------- corpus


def test_a_torn_array_is_noticed(tmp_path: Path) -> None:
    write_encoded(tmp_path / "c", iter([Encoded([1, 2, 3], [True] * 3, 3)]), {})
    (tmp_path / "c" / "ids.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(InputError, match="torn"):
        open_corpus(tmp_path / "c")


# --------------------------------------------------------------------------------------- sources


def read(*sources: Any) -> list[Document]:
    return list(documents(tuple(sources)))


def test_text_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n===\ntwo\n===\n  \n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("three")
    assert [d.text for d in read(TextSource(text=str(tmp_path / "a.txt"), separator="==="))] == ["one", "two"]
    assert [d.text for d in read(TextSource(text=str(tmp_path)))] == ["one\n===\ntwo\n===\n  ", "three"]
    assert len(read(TextSource(text=str(tmp_path), max_documents=1))) == 1


def test_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    lines = [{"text": "plain"}, {"messages": messages}, {"prompt": "p", "response": "r"}, {"text": "  "}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = read(JsonlSource(jsonl=str(tmp_path / "d.jsonl")))
    assert [d.text for d in found] == ["plain", None, None]
    assert found[1].messages == tuple(messages)
    assert not found[2].chat
    pq.write_table(pa.table({"body": ["x", "y"]}), tmp_path / "d.parquet")
    assert [d.text for d in read(ParquetSource(parquet=str(tmp_path / "d.parquet"), field="body"))] == ["x", "y"]


def test_a_local_data_set_through_the_hub_door(tmp_path: Path) -> None:
    from limbeck.recipe import HubSource

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert sorted(d.text or "" for d in read(HubSource(dataset=str(folder)))) == ["a", "b"]
    with pytest.raises(LimbeckError, match="cannot be loaded"):
        read(HubSource(dataset=str(tmp_path / "absent")))


def test_the_standard_library_is_text() -> None:
    found = read(StdlibSource(stdlib="docstrings", max_documents=50))
    assert len(found) == 50
    assert all(d.text and len(d.text) >= 40 for d in found)
    asked = read(StdlibSource(stdlib="questions", max_documents=3000))
    assert all(d.messages[0]["content"].endswith("?") and len(d.messages[1]["content"]) >= 20 for d in asked)
    assert any("`abc.abstractmethod`" in d.messages[0]["content"] for d in asked)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        (b'{"body": "a"}\n', "body"),
        (b"[1]\n", "no object"),
        (b'{"messages": [{"role": "user"}]}\n', "content"),
        (b"\xff\xfe\n", "not UTF-16"),
        (b'{"text": "\xe9"}\n', "not UTF-8"),
        (b"\n", "no document"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(LimbeckError, match=says) as caught:
        read(JsonlSource(jsonl=str(path)))
    assert "data.corpus.0" in caught.value.line()


def test_a_torn_parquet_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match="Parquet"):
        read(ParquetSource(parquet=str(tmp_path / "d.parquet")))


def test_a_lone_surrogate_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a\\ud800b"}\n{"text": "b"}\n')
    found = list(documents((JsonlSource(jsonl=str(tmp_path / "d.jsonl")),)))
    with pytest.raises(InputError, match=f"{found[0].key[:12]}.*no Unicode"):
        encode_batch(found, tokenizer)


# ------------------------------------------------------------------------------------------ chat


def learned(document: Document, tokenizer: Any) -> str:
    encoded = encode(document, tokenizer)
    return str(tokenizer.decode([i for i, flag in zip(encoded.ids, encoded.loss_mask, strict=True) if flag]))


CHAT = Document(
    messages=(
        {"role": "user", "content": "what is a cat"},
        {"role": "assistant", "content": "a big dog"},
        {"role": "user", "content": "and a dog"},
        {"role": "assistant", "content": "a blue hill"},
    )
)


def test_text_is_learned_whole(tokenizer: Any) -> None:
    encoded = encode(Document(text="the cat"), tokenizer)
    assert encoded.ids[0] == tokenizer.bos_token_id
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert list(encoded.loss_mask) == [MASKED] + [WORDS] * (len(encoded.ids) - 2) + [MARK]
    assert encoded.n_bytes == 7


def test_only_the_assistant_is_learned(tokenizer: Any) -> None:
    chatty = with_template(tokenizer, CHATML)
    assert learned(CHAT, chatty) == "a big dog<|im_end|>a blue hill<|im_end|>"
    ids, mask = np.array(encode(CHAT, chatty).ids), np.array(encode(CHAT, chatty).loss_mask)
    prompt, rest = split_prompt(ids, mask, 3)
    assert chatty.decode(prompt).endswith("and a dog<|im_end|>\n<|im_start|>assistant\n")
    assert chatty.decode(rest) == "a blue hill<|im_end|>\n"


def test_pairs_need_no_template(tokenizer: Any) -> None:
    pair = Document(messages=({"role": "user", "content": "one "}, {"role": "assistant", "content": "two"}), chat=False)
    assert learned(pair, tokenizer) == "two<|endoftext|>"
    with pytest.raises(InputError, match="no chat template"):
        encode(CHAT, tokenizer)


def with_template(tokenizer: Any, template: str) -> Any:
    import copy

    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = template
    return chatty


# As Qwen3 does: what was thought in earlier turns is taken out, and the last turn gets an empty thought.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'].split('</think>')[-1].lstrip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_answers_are_found_where_a_template_rewrites_earlier_turns(tokenizer: Any) -> None:
    thought = {"role": "assistant", "content": "<think>hm</think>a big dog"}
    document = Document(messages=(CHAT.messages[0], thought, *CHAT.messages[2:]))
    for each in (document, CHAT):
        text = learned(each, with_template(tokenizer, FORGETFUL))
        assert text == "a big dog<|im_end|><think>\n\n</think>\n\na blue hill<|im_end|>"


def test_marks_between_turns_only_are_not_learned(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if not loop.first %}|{% endif %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}|assistant:{% endif %}"
    assert learned(CHAT, with_template(tokenizer, template)) == "a big doga blue hill"


def test_a_question_is_shown_without_its_template(tokenizer: Any) -> None:
    def prompt(*messages: tuple[str, str]) -> list[int]:
        document = Document(messages=tuple({"role": role, "content": words} for role, words in messages))
        encoded = encode(document, chatty)
        return split_prompt(np.array(encoded.ids), np.array(encoded.loss_mask), 12)[0]

    system = "{% if messages[0]['role'] != 'system' %}<sys>be kind</sys>{% endif %}"
    for template in (CHATML, system + CHATML):
        chatty = with_template(tokenizer, template)
        assert words_asked(prompt(("user", "what ran?"), ("assistant", "the dog")), chatty) == "what ran?"
        several = prompt(("user", "so?"), ("assistant", "no"), ("user", "what ran?"), ("assistant", "the dog"))
        assert words_asked(several, chatty) == "[…] what ran?"
        assert words_asked(prompt(("user", "a\nb: c"), ("assistant", "the dog")), chatty) == "a\nb: c"
        told = prompt(("system", "be kind"), ("user", "what ran?"), ("assistant", "the dog"))
        assert words_asked(told, chatty) == "[…] what ran?"
    assert words_asked(prompt(("user", "what ran?"), ("assistant", "the dog")), tokenizer).endswith(
        "what ran?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_refuses_a_bare_question_is_read_as_text(tokenizer: Any) -> None:
    strict = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    document = Document(
        messages=tuple({"role": r, "content": w} for r, w in (("system", "so"), ("user", "what?"), ("assistant", "it")))
    )
    chatty = with_template(tokenizer, strict)
    encoded = encode(document, chatty)
    assert "what?" in words_asked(encoded.ids, chatty)


def test_a_conversation_may_begin_with_the_assistant(tokenizer: Any) -> None:
    template = "{% if messages[0]['role'] != 'system' %}<sys>be kind</sys>{% endif %}" + CHATML
    greeting = Document(messages=({"role": "assistant", "content": "welcome"}, *CHAT.messages))
    text = learned(greeting, with_template(tokenizer, template))
    assert text == "welcome<|im_end|>a big dog<|im_end|>a blue hill<|im_end|>"
    assert encode(greeting, with_template(tokenizer, template)).n_bytes == len("welcome" + "a big dog" + "a blue hill")


def test_a_template_that_loses_an_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="cannot be found"):
        encode(CHAT, with_template(tokenizer, "{{ messages[-1]['content'] }}"))


def test_what_no_template_reads_does_not_tell_conversations_apart(tmp_path: Path) -> None:
    lines = [{"messages": [{**m, "id": i} for m in CHAT.messages]} for i in range(3)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len({d.key for d in read(JsonlSource(jsonl=str(tmp_path / "d.jsonl")))}) == 1


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbfa")
    found = read(JsonlSource(jsonl=str(tmp_path / "d.jsonl")), TextSource(text=str(tmp_path / "d.txt")))
    assert [d.text for d in found] == ["a", "a"]


def test_the_prompt_of_plain_text() -> None:
    ids = np.arange(10)
    learn = np.array([False] + [True] * 9)
    assert split_prompt(ids, learn, 3) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    assert split_prompt(ids, np.ones(10, bool), 3) == ([0, 1, 2], [3, 4, 5, 6, 7, 8, 9])


def test_prompts_cover_a_long_document() -> None:
    ids, learn = np.arange(25), np.array([False] + [True] * 24)
    assert prompts_of(ids, learn, 3, every=10) == [[0, 1, 2, 3], [10, 11, 12], [20, 21, 22]]
    assert prompts_of(ids[:4], learn[:4], 3, every=10) == []
    assert prompts_of(ids, np.zeros(25, bool), 3, every=10) == []
    chat = np.array([False] * 5 + [True] * 3 + [False] * 2 + [True] * 15)
    assert prompts_of(ids, chat, 3, every=10) == [list(range(10))]


@pytest.mark.real
def test_real_chat_templates(real_data: Path) -> None:
    from transformers import AutoTokenizer

    for name in ("smollm", "qwen2"):
        real = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
        text = learned(CHAT, real)
        assert text == "a big dog<|im_end|>a blue hill<|im_end|>"
