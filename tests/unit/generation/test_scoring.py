"""What servers say of texts: forms, the probe, and texts on their way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import BudgetError, RecipeError, TeacherGoneError
from limbeck.generation.api.protocols import MalformedError
from limbeck.generation.api.scoring.forms import VLLM, SGLang
from limbeck.generation.api.scoring.probe import TEXT, Reveals, probe_scoring
from limbeck.generation.api.scoring.scorer import Scorer
from limbeck.generation.api.scoring.scores import Scores, read_scores
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.rows import Spent
from limbeck.recipe.served import Budget, Endpoint
from tests.servers.clock import JumpingClock
from tests.servers.faulty import Fault
from tests.servers.scoring import ScoringServer

SPEAKS = ("vllm", "sglang")
KEY = "sk-a-key-that-is-written-nowhere"


@pytest.fixture(scope="module")
def model(teacher_folder: Path) -> Any:
    """A real model, sure of itself: a few entries hold most of the mass, as a trained one's do."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    return model


def endpoint(server: ScoringServer, **more: Any) -> Endpoint:
    plain = {"api": f"{server.url}/v1", "model": "toy", "prices": {"input": 1.0, "output": 1.0}, **more}
    # The clock of these tests jumps: on a busy machine an hour may pass before a real server answers.
    return Endpoint(**{"deadline_seconds": 1e6, "patience_seconds": 1e6, **plain})


def scored(
    server: ScoringServer, reveals: Reveals, texts: list[list[int]], vocab_size: int, **more: Any
) -> dict[int, Scores]:
    budget = more.pop("budget", None)
    found: dict[int, Scores] = {}
    scorer = Scorer(
        endpoint(server, **more), reveals, 1.0, vocab_size, Ledger(budget, Spent(0, 0, 0, 0)), JumpingClock()
    )
    scorer.run(enumerate(texts), found.__setitem__)
    return found


def truth(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


@pytest.mark.parametrize("speaks", SPEAKS)
def test_scores_are_the_models_own(speaks: str, model: Any, tokenizer: Any, texts: list[str]) -> None:
    prompts = [tokenizer.encode(text) for text in texts[:12]]
    with ScoringServer(model, tokenizer, speaks=speaks) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
        found = scored(server, reveals, prompts, len(tokenizer))
    assert reveals.form == {"vllm": "prompt_logprobs", "sglang": "return_logprob"}[speaks]
    assert (reveals.entries, reveals.tempered, reveals.proven, reveals.window) == (5, False, True, 512)
    assert sorted(found) == list(range(12))
    outside = 0
    for number, scores in found.items():
        ids = prompts[number]
        logp_PV = truth(model, ids)
        assert len(scores) == len(ids) - 1
        starts = np.cumsum(scores.counts_P) - scores.counts_P
        for p, (start, count) in enumerate(zip(starts, scores.counts_P, strict=True)):
            mine = scores.ids[start : start + count].tolist()
            best = logp_PV[p].topk(5).indices.tolist()
            assert mine[:5] == best
            assert mine[5:] == ([] if ids[p + 1] in best else [ids[p + 1]])
            outside += len(mine) - 5
            np.testing.assert_allclose(scores.logprobs[start : start + count], logp_PV[p, mine], atol=2e-5)
            np.testing.assert_allclose(scores.own_P[p], logp_PV[p, ids[p + 1]], atol=2e-5)
            np.testing.assert_allclose(scores.mass_P[p], logp_PV[p, mine].exp().sum(), atol=2e-5)
    assert outside > 10, "the text's own token was never outside the most probable ones"


@pytest.mark.parametrize("speaks", SPEAKS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("null", "does not give log-probabilities of a text"),
        ("few", "4 entries on token|5 entries on token"),
        ("foreign", "does not give the log-probability of the text's own token|cannot be used"),
        ("later", "shifted by"),
        ("earlier", "shifted by"),
        ("bos", "puts a token of its own before a text"),
        ("own_left_out", "own token|None"),
        ("too_much", "sum to"),
        ("writes_otherwise", "does not write from what it says"),
    ],
)
def test_a_server_that_reveals_too_little_is_refused(
    speaks: str, wrong: str, said: str, model: Any, tokenizer: Any
) -> None:
    with ScoringServer(model, tokenizer, speaks=speaks, wrong=wrong) as server, pytest.raises(RecipeError) as error:
        probe_scoring(endpoint(server), tokenizer, 5)
    assert error.value.key in (".model", ".signals.k")
    assert "toy at http://127.0.0.1" in error.value.what
    assert re.search(said, error.value.what), error.value.what


def test_logits_are_no_log_probabilities(model: Any, tokenizer: Any) -> None:
    with ScoringServer(model, tokenizer, raw=True) as server, pytest.raises(RecipeError) as error:
        probe_scoring(endpoint(server), tokenizer, 5)
    assert "sum to" in error.value.what

    class Low:
        """Logits that are all far below 0, so that no sum is above 1."""

        def __call__(self, input_ids: Any) -> Any:
            answer = model(input_ids=input_ids)
            answer.logits = answer.logits - answer.logits.max() - 3
            return answer

    with ScoringServer(Low(), tokenizer, raw=True) as server, pytest.raises(RecipeError, match="logprobs-mode"):
        probe_scoring(endpoint(server), tokenizer, 5)


def test_a_limit_is_named(model: Any, tokenizer: Any) -> None:
    with ScoringServer(model, tokenizer, most=20) as server, pytest.raises(RecipeError) as error:
        probe_scoring(endpoint(server), tokenizer, 64)
    assert error.value.key == ".signals.k"
    assert "gives at most 20" in error.value.what
    assert "Ask for 20" in (error.value.fix or "")


def test_the_temperature(model: Any, tokenizer: Any) -> None:
    with ScoringServer(model, tokenizer) as server:
        with pytest.raises(RecipeError) as error:
            probe_scoring(endpoint(server), tokenizer, 5, 2.0)
        assert error.value.key == ".temperature"
    with ScoringServer(model, tokenizer, tempered=True) as server:
        assert probe_scoring(endpoint(server), tokenizer, 5).tempered
        reveals = probe_scoring(endpoint(server), tokenizer, 5, 2.0)
        assert "at the temperature of the request" in reveals.line()
        ids = tokenizer.encode(TEXT)
        scorer = Scorer(endpoint(server), reveals, 2.0, len(tokenizer), Ledger(None, Spent(0, 0, 0, 0)))
        found: list[Scores] = []
        scorer.run([(None, ids)], lambda _, scores: found.append(scores))
    with torch.no_grad():
        warm_PV = (model(input_ids=torch.tensor([ids])).logits[0, :-1] / 2).log_softmax(-1)
    own = warm_PV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(found[0].own_P, own, atol=2e-5)
    np.testing.assert_allclose(found[0].own_P, reveals.own_P, atol=1e-4)


def test_another_tokenizer(model: Any, tokenizer: Any, texts: list[str]) -> None:
    from limbeck.models.tokenizer import train_tokenizer

    other = train_tokenizer([TEXT, *texts], 320)
    with ScoringServer(model, other) as server, pytest.raises(RecipeError, match="has another tokenizer") as error:
        probe_scoring(endpoint(server), tokenizer, 5)
    assert "tokenizer.path" in (error.value.fix or "")


def test_a_model_is_known_again(model: Any, tokenizer: Any) -> None:
    with ScoringServer(model, tokenizer) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
    assert not reveals.is_another([value + 0.01 for value in reveals.own_P])
    assert reveals.is_another([value - 0.5 for value in reveals.own_P])
    assert reveals.is_another(reveals.own_P[1:])


@pytest.mark.parametrize("speaks", SPEAKS)
def test_faults_that_pass(speaks: str, model: Any, tokenizer: Any, texts: list[str]) -> None:
    prompts = [tokenizer.encode(text) for text in texts[:40]]
    kinds = ("429", "500", "503", "cut", "reset", "malformed", "error_body", "null", "later", "nan")
    with ScoringServer(model, tokenizer, speaks=speaks) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
        clean = scored(server, reveals, prompts, len(tokenizer))
        server.asked.clear()
        server.settings.faults = [Fault(kind, share=0.1, tries=1, retry_after="float") for kind in kinds]
        found = scored(server, reveals, prompts, len(tokenizer), concurrency=8)
        assert server.most_in_flight <= 16
        assert sum(server.asked.values()) > len(prompts) + 5, "no fault came"
    assert sorted(found) == sorted(clean)
    for number, scores in found.items():
        for name, value in vars(scores).items():
            np.testing.assert_array_equal(value, getattr(clean[number], name))


@pytest.mark.parametrize("wrong", ["null", "few", "later", "foreign", "too_much", "nan", "own_left_out", "bos"])
def test_an_answer_that_stays_wrong_ends_the_capture(wrong: str, model: Any, tokenizer: Any, texts: list[str]) -> None:
    with ScoringServer(model, tokenizer) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
        server.wrong = wrong
        with pytest.raises(TeacherGoneError, match="cannot be used") as error:
            scored(server, reveals, [tokenizer.encode(text) for text in texts[:3]], len(tokenizer))
    assert "is kept" in (error.value.fix or "")


def test_what_was_answered_before_an_error_is_kept(model: Any, tokenizer: Any, texts: list[str]) -> None:
    prompts = [tokenizer.encode(text) for text in texts[:20]]
    found: dict[int, Scores] = {}
    with ScoringServer(model, tokenizer) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
        budget = Budget(tokens=sum(len(prompt) + 2 for prompt in prompts[:5]))
        ledger = Ledger(budget, Spent(0, 0, 0, 0))
        scorer = Scorer(endpoint(server, concurrency=1), reveals, 1.0, len(tokenizer), ledger)
        with pytest.raises(BudgetError) as error:
            scorer.run(enumerate(prompts), found.__setitem__)
    assert error.value.key == ".budget.tokens"
    assert sorted(found) == list(range(5))
    assert ledger.spent.tokens <= budget.tokens  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "error"), [("402", BudgetError), ("key", RecipeError), ("withdrawn", RecipeError)])
def test_faults_that_stop(
    kind: str, error: type[Exception], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    with ScoringServer(model, tokenizer) as server:
        reveals = probe_scoring(endpoint(server, api_key_env="TOY_KEY"), tokenizer, 5)
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        server.settings.faults = [Fault(kind)]
        with pytest.raises(error) as raised:
            scored(server, reveals, [[1, 2, 3]], len(tokenizer), api_key_env="TOY_KEY")
        with pytest.raises(error) as probed:
            probe_scoring(endpoint(server, api_key_env="TOY_KEY"), tokenizer, 5)
    assert KEY not in str(raised.value) + str(probed.value)


def test_a_text_that_is_too_long_is_named(model: Any, tokenizer: Any) -> None:
    with ScoringServer(model, tokenizer, window=300) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
        assert reveals.window == 300
        with pytest.raises(RecipeError, match="does not take a text of 300 tokens"):
            scored(server, reveals, [[5] * 300], len(tokenizer))
        assert len(scored(server, reveals, [[5] * 299], len(tokenizer))[0]) == 298


def test_a_server_that_is_down(model: Any, tokenizer: Any) -> None:
    with ScoringServer(model, tokenizer) as server:
        reveals = probe_scoring(endpoint(server), tokenizer, 5)
        place = endpoint(server, deadline_seconds=5, patience_seconds=5)
    with pytest.raises(TeacherGoneError):
        probe_scoring(place, tokenizer, 5)
    scorer = Scorer(place, reveals, 1.0, len(tokenizer), Ledger(None, Spent(0, 0, 0, 0)), JumpingClock())
    with pytest.raises(TeacherGoneError, match="answers no more"):
        scorer.run([(0, [1, 2, 3])], lambda *_: None)


@pytest.mark.parametrize(
    ("form", "plain"),
    [
        (VLLM(), None),
        (VLLM(), {"choices": []}),
        (VLLM(), {"choices": [{"text": ""}]}),
        (VLLM(), {"choices": [{"prompt_logprobs": [None, {"a": {"logprob": 1}}]}]}),
        (VLLM(), {"choices": [{"prompt_logprobs": [None, {"1": {"rank": 1}}]}]}),
        (VLLM(), {"choices": [{"prompt_logprobs": [None, {"1": {"logprob": None}}]}]}),
        (VLLM(), {"choices": [{"prompt_logprobs": [None, [1]]}]}),
        (SGLang(), []),
        (SGLang(), {"meta_info": {}}),
        (SGLang(), {"meta_info": {"input_token_logprobs": [[None, 1]], "input_top_logprobs": []}}),
        (SGLang(), {"meta_info": {"input_token_logprobs": [[-1.0]], "input_top_logprobs": [[[-1.0, 2]]]}}),
        (SGLang(), {"meta_info": {"input_token_logprobs": [[-1.0, "a"]], "input_top_logprobs": [[[-1.0, 2]]]}}),
    ],
)
def test_answers_of_another_form(form: Any, plain: Any) -> None:
    with pytest.raises(MalformedError):
        form.positions(plain)


def test_entries_beyond_the_vocabulary_and_impossible_tokens_are_left_out() -> None:
    positions = [None, {9: -0.1, 1: -2.0, 2: -4.0, 0: -9999.0}]
    scores = read_scores(positions, [3, 0], 3, 9)
    assert scores.ids.tolist() == [1, 2]
    assert scores.own_P.tolist() == [-np.inf]
    np.testing.assert_allclose(scores.mass_P, np.exp(-2) + np.exp(-4))
    with pytest.raises(MalformedError, match="3 entries on token 1, where 4"):
        read_scores(positions, [3, 0], 4, 9)
