"""What an endpoint takes and reveals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from limbeck.errors import BudgetError, LimbeckError, RecipeError, TeacherGoneError
from limbeck.generation.api.probe import probe
from limbeck.generation.request import Request
from limbeck.recipe.served import Endpoint
from tests.servers.faulty import Fault, FaultyServer


def ask(server: FaultyServer, *requests: Request, **more: Any) -> Any:
    return probe(Endpoint(**{"api": f"{server.url}/v1", "model": "m", **more}), requests)


@pytest.mark.parametrize(
    ("logprobs", "most"), [(None, 0), (1, 1), (5, 5), (20, 20), (1000, 50)], ids=["null", "1", "5", "20", "any"]
)
def test_logprobs(logprobs: int | None, most: int) -> None:
    with FaultyServer(logprobs=logprobs) as server:
        found = ask(server)
    assert found.top_logprobs == most
    words = {0: "no logprobs", 50: "any number of top logprobs"}
    assert words.get(most, f"up to {most} top logprobs") in found.line()
    if most in (0, 5):
        with pytest.raises(RecipeError, match="top logprobs are asked for"):
            found.check(Request(top_logprobs=most + 1))
        found.check(Request(top_logprobs=most))


def test_the_temperature_tells_whether_logprobs_are_of_the_model() -> None:
    with FaultyServer(logprobs=5) as server:
        assert ask(server).sampling == "pre"


@pytest.mark.parametrize(
    ("where", "name"),
    [("reasoning", "`reasoning`"), ("reasoning_content", "`reasoning_content`"), ("tags", "tags"), ("none", None)],
)
def test_reasoning(where: str, name: str | None) -> None:
    with FaultyServer(reasoning=where) as server:
        assert ask(server).reasoning == name


def test_refused_parameters_are_found_and_asking_for_them_is_an_error() -> None:
    with FaultyServer(refuses=("temperature", "top_k"), length_field="max_completion_tokens") as server:
        found = ask(server)
    assert {each.name for each in found.refused} == {"temperature", "top_k"}
    assert found.length_field == "max_completion_tokens"
    with pytest.raises(RecipeError) as error:
        found.check(Request(temperature=0.0))
    assert error.value.key == ".temperature"
    found.check(Request(top_p=0.5))
    assert "refuses temperature, top_k" in found.line()


def test_only_what_will_be_asked_is_tried() -> None:
    with FaultyServer(refuses=("temperature",)) as server:
        found = ask(server, Request(messages=({"role": "user", "content": "x"},), top_p=0.5))
        assert found.refused == ()
        warm = Request(messages=({"role": "user", "content": "x"},), temperature=0.5)
        found = ask(server, warm, Request(top_p=0.5), warm)
        assert [(each.name, each.value) for each in found.refused] == [("temperature", 0.5)]
        with pytest.raises(RecipeError, match=r"temperature.*refuses.*`temperature: null`"):
            found.check(warm)
        found.check(Request(top_p=0.5))


def test_a_value_that_is_refused_without_a_name_is_found_by_trying() -> None:
    warm = Request(messages=({"role": "user", "content": "x"},), temperature=3.0, top_p=0.5, seed=1)
    with FaultyServer(most_temperature=2.0) as server:
        found = ask(server, warm)
        assert ask(server, replace(warm, temperature=1.0)).refused == ()
    assert [(each.name, each.value) for each in found.refused] == [("temperature", 3.0)]
    with pytest.raises(RecipeError, match=r"must be in \[0, 2\], got 3.0") as error:
        found.check(warm)
    assert error.value.key == ".temperature"
    assert "does not answer" not in str(error.value)


def test_a_server_that_refuses_has_answered() -> None:
    with FaultyServer(faults=[Fault("bad_request")]) as server, pytest.raises(RecipeError) as raised:
        ask(server)
    assert "refuses the request" in raised.value.what


def test_a_field_of_extra_that_is_refused_is_named_where_it_stands() -> None:
    with FaultyServer(refuses=("reasoning_effort",)) as server, pytest.raises(RecipeError) as raised:
        ask(server, extra={"reasoning_effort": "low"})
    assert raised.value.key == ".extra.reasoning_effort"


@pytest.mark.parametrize(
    ("protocol", "path", "named"),
    [("completions", "/v1", "max_tokens"), ("anthropic", "", "anthropic"), ("gemini", "/v1beta", "gemini")],
)
def test_other_protocols(protocol: str, path: str, named: str) -> None:
    with FaultyServer(reasoning="reasoning") as server:
        found = ask(server, api=f"{server.url}{path}", protocol=protocol)
    assert named in found.line()
    assert found.usage
    assert found.tokens > 0


@pytest.mark.parametrize(
    ("kind", "error", "key"),
    [
        ("402", BudgetError, None),
        ("key", RecipeError, ".api_key_env"),
        ("withdrawn", RecipeError, ".model"),
        ("terms", TeacherGoneError, None),
        ("bad_request", RecipeError, ".protocol"),
    ],
)
def test_what_cannot_be_asked(kind: str, error: type[LimbeckError], key: str | None) -> None:
    with FaultyServer(faults=[Fault(kind)]) as server, pytest.raises(error) as raised:
        ask(server)
    assert raised.value.key == key
    assert sum(server.asked.values()) == 1


def test_a_server_that_is_down() -> None:
    with pytest.raises(TeacherGoneError, match="does not answer"):
        probe(Endpoint(api="http://127.0.0.1:9/v1", model="m"))


def test_a_fault_that_passes_is_tried_again() -> None:
    with FaultyServer(faults=[Fault("429", tries=1, retry_after="float")]) as server:
        assert ask(server).usage
