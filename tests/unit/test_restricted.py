"""A teacher of a large vocabulary, a student of a part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from limbeck.data.packing import Rows
from limbeck.evaluation.gap import dropped_share, measure
from limbeck.generation.local import LocalSampler
from limbeck.models.causal_lm import CausalLM
from limbeck.models.generate import Sampling, generate
from limbeck.models.proof import prove
from limbeck.models.restricted import KeptTokens, RestrictedModel
from limbeck.models.tokenizer import OTHER
from limbeck.objectives import Dense, Restriction, Term, fused_divergence
from limbeck.pruning.vocabulary import choose_tokens, cut_tokenizer
from tests.unit.cutting.conftest import make
from tests.unit.cutting.tokenizers import TEXTS, sentencepiece
from tests.unit.test_data import corpus_of


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("kept_ids", [[3, 4, 9, 17, 30], [*range(13), *range(14, 40)], range(40)], ids=len)
def test_the_rest_of_the_teacher_is_one_outcome(softcap: float | None, tail: bool, kept_ids: Sequence[int]) -> None:
    torch.manual_seed(0)
    n, d, v = 7, 8, 40
    kept = torch.tensor(list(kept_ids))
    restriction = Restriction(kept, v, tail)
    hidden = torch.randn(n, d, requires_grad=True)
    head = torch.randn(restriction.size, d, requires_grad=True)
    theirs, their_head = torch.randn(n, 6), torch.randn(v + 3, 6)  # three rows of padding
    target = Dense(theirs, their_head, softcap=softcap, restriction=restriction)
    outcome = fused_divergence(hidden, head, [Term(target)], chunk_tokens=3)
    outcome.loss_sum.backward()

    logits = (theirs.double() @ their_head.double().T)[:, :v]
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    p = logits.softmax(-1)
    rest = torch.ones(v, dtype=torch.bool)
    rest[kept] = False
    q_kept = p[:, kept]
    target_p = (
        torch.cat([q_kept, p[:, rest].sum(-1, keepdim=True)], -1) if tail else q_kept / q_kept.sum(-1, keepdim=True)
    )
    h, w = hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    loss = (torch.xlogy(target_p, target_p) - target_p * F.log_softmax(h @ w.T, -1)).sum()
    loss.backward()
    assert float(outcome.loss_sum.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(hidden.grad.double(), h.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.grad.double(), w.grad, rtol=1e-4, atol=1e-5)


@pytest.fixture
def restricted(make_lm: Callable[..., CausalLM], tokenizer: Any, texts: list[str]) -> RestrictedModel:
    lm = make_lm(2, seq_len=64)
    counts = Counter(i for text in texts[:20] for i in tokenizer(text)["input_ids"])
    kept: KeptTokens = choose_tokens(lm.model, tokenizer, counts, min_count=20, other=True)
    assert kept.size < 318
    return RestrictedModel(lm, kept, cut_tokenizer(tokenizer, kept))


def test_a_restricted_teacher_reads_its_students_ids(restricted: RestrictedModel, tokenizer: Any) -> None:
    text = "the cat sat on a mat"
    ids = torch.tensor([restricted.tokenizer(text)["input_ids"]])
    own = restricted.own_ids(ids)
    assert tokenizer.decode(own[0].tolist()) == text
    positions = torch.arange(ids.shape[1])[None]
    plain = CausalLM(restricted.model, tokenizer)
    torch.testing.assert_close(restricted.hidden(ids, positions), plain.hidden(own, positions))
    assert restricted.own_ids(torch.tensor([-100, 5])).tolist()[0] == -100


def test_the_share_of_what_was_dropped_is_the_naive_one(restricted: RestrictedModel, texts: list[str]) -> None:
    ids = [restricted.tokenizer(text)["input_ids"] for text in texts[:7]]
    rows = Rows(corpus_of([(row, [i > 0 for i in range(len(row))]) for row in ids]), 64, pack=False)
    total, labels = 0.0, 0
    for row in ids:
        own = restricted.own_ids(torch.tensor([row]))
        with torch.no_grad():
            p = restricted.model(input_ids=own).logits[0, :-1, : restricted.own_vocab_size].double().softmax(-1)
        total += float(p[:, restricted.kept.dropped].sum())
        labels += len(row) - 1
    assert dropped_share(restricted, rows, batch_size=3, chunk=5) == pytest.approx(total / labels, rel=1e-5)
    assert 0.0 < total / labels < 1.0


@pytest.mark.parametrize("dropped", [1, 20])  # with one dropped, both vocabularies have the same size
def test_a_teacher_that_learned_along_is_compared_over_its_own_vocabulary(
    dropped: int, make_lm: Callable[..., CausalLM], tokenizer: Any, texts: list[str]
) -> None:
    before, after = make_lm(2, seq_len=64), make_lm(3, seq_len=64)
    counts = dict.fromkeys(range(320 - dropped), 1)
    kept = choose_tokens(before.model, tokenizer, counts, other=True)
    assert len(kept.dropped) == dropped
    students = cut_tokenizer(tokenizer, kept)
    documents = [(ids, [False] + [True] * (len(ids) - 1)) for ids in students(texts[:5])["input_ids"]]
    rows = Rows(corpus_of(documents), 64, pack=False)
    found = measure(RestrictedModel(after, kept, students), rows, RestrictedModel(before, kept, students))
    own = kept.ids_K
    for d, (ids, _) in enumerate(documents):
        read = own[torch.tensor([ids[:65]])]
        with torch.no_grad():
            logp, logq = (lm.model(read).logits[0, :-1, :320].double().log_softmax(-1) for lm in (before, after))
        assert found.kl is not None
        assert found.kl[d] == pytest.approx(float((logp.exp() * (logp - logq)).sum()), rel=1e-3)


def test_what_it_writes_comes_back_in_its_students_ids(restricted: RestrictedModel, tokenizer: Any) -> None:
    prompt = restricted.tokenizer("the dog")["input_ids"]
    plain = CausalLM(restricted.model, tokenizer)
    ((_, theirs),) = generate(plain, [tokenizer("the dog")["input_ids"]], Sampling(12, seed=1), 1)
    ((_, ours),) = generate(restricted, [prompt], Sampling(12, seed=1), 1)
    assert restricted.tokenizer.decode(ours) == tokenizer.decode(theirs)
    assert restricted.tokenizer.get_vocab()[OTHER] not in ours


def test_a_student_never_writes_the_bucket(restricted: RestrictedModel, make_lm: Callable[..., CausalLM]) -> None:
    from limbeck.models.load import load_model
    from limbeck.recipe import ConfigModel
    from tests.conftest import LLAMA

    student = load_model(ConfigModel(config=LLAMA), restricted.tokenizer)
    other = student.tokenizer.get_vocab()[OTHER]
    with torch.no_grad():
        student.head().weight_VD[other] *= 1000.0  # tied: it would be written often
    answers = dict(generate(student, [[5, 6]] * 8, Sampling(10, temperature=2.0), 8))
    assert other not in {i for answer in answers.values() for i in answer}


def test_dropped_tokens_fall_into_their_pieces_where_they_stand() -> None:
    """Of a tokenizer that puts a space before every text: not before a piece of one."""
    own = sentencepiece()
    lm = CausalLM(make("llama", vocab_size=len(own)), own)
    counts = Counter(i for text in TEXTS[:2] for i in own(text)["input_ids"])
    kept = choose_tokens(lm.model, own, counts, other=True)
    prove(lm)
    restricted = RestrictedModel(lm, kept, cut_tokenizer(own, kept))
    dropped = kept.dropped.tolist()
    assert dropped
    for token in dropped:
        ids = [*own("the", add_special_tokens=False)["input_ids"], token]
        assert restricted.tokenizer.decode(restricted.from_own(ids)) == own.decode(ids)


def test_a_model_stops_at_every_end_that_its_makers_list(make_lm: Callable[..., CausalLM], tokenizer: Any) -> None:
    lm = make_lm(2)
    end = tokenizer.eos_token_id
    ((_, free),) = generate(lm, [[5, 6]], Sampling(12, temperature=0, stop=False), 1)
    assert len(free) == 12
    turn = next(token for token in free if token != end)
    lm.core.generation_config.eos_token_id = [end, turn]
    ((_, stopped),) = generate(lm, [[5, 6]], Sampling(12, temperature=0), 1)
    assert stopped == free[: free.index(turn) + 1]
    lm.core.generation_config.eos_token_id = [turn]  # of another tokenizer: not believed
    assert lm.end_ids() == [end]


def test_a_teacher_writes_in_bfloat16_if_asked(make_lm: Callable[..., CausalLM]) -> None:
    """The same words as with weights that were rounded by hand: its linear layers, not its embeddings and norms."""
    teacher, by_hand = make_lm(2), make_lm(2)
    for module in by_hand.model.modules():
        if isinstance(module, torch.nn.Linear) and module is not by_hand.core.get_output_embeddings():
            module.weight.data = module.weight.data.bfloat16()
    prompts, sampling = [[5, 6], [7, 8, 9]], Sampling(6, temperature=0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = dict(generate(by_hand, prompts, sampling, 2))
    assert dict(LocalSampler(teacher, "bf16").sample(prompts, sampling)) == expected
    assert teacher.core.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert teacher.core.model.embed_tokens.weight.dtype == torch.float32
