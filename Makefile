PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install -q -c constraints.txt

# Each of several processes runs tests with one thread of torch.
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 4

# What test-quick runs: tests of every part that take milliseconds, the smallest fits, and the laws of two bijectors.
QUICK := floors laws bijectors distributions latents trainer epochs files archive elbo_options elbo_draws batch_and_match
QUICK := $(QUICK:%=tests/test_%.py)
QUICK += tests/test_fit.py::test_a_normal_mean tests/test_svi.py::test_what_changes_between_steps

# What test-torch runs: tracing, compiling, steps, written gradients, fits, and the laws.
INNER := audit compiled_elbo compiler elbo_changes elbo_draws fit fused graph laws replay solve spline_gradient
INNER += svi torch_compile traced_loss trainer written
INNER := $(INNER:%=tests/test_%.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-slow test-torch lint docs bench clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: .venv/.stamp  ## Fit a flow to the eight schools
	$(BIN)/python examples/eight_schools.py

test: lint  ## Lint, then run the tests, the docstrings and the examples in the text
	$(PYTEST) --doctest-modules --doctest-glob='*.md' tests pyroflows $(wildcard README.md docs/*.md)

test-quick: lint  ## Lint, then run a part of the tests that is broad and takes two minutes
	$(PYTEST) $(QUICK) -k "not test_law or of_affine or of_spline"

test-slow: .venv/.stamp  ## Run the slow tests
	$(PYTEST) -m slow

test-torch:  ## Run the tests of what hangs on torch's inner parts with another torch: make test-torch TORCH=2.6.0
	$(if $(TORCH),,$(error expected a version of torch, as in: make test-torch TORCH=2.6.0))
	$(PYTHON) -m venv .venv-torch-$(TORCH)
	.venv-torch-$(TORCH)/bin/pip install -q torch==$(TORCH) -e ".[dev]"
	.venv-torch-$(TORCH)/bin/pytest -q -n auto --maxprocesses 4 $(INNER)

lint: .venv/.stamp  ## Check style and formatting
	$(BIN)/ruff check -q
	$(BIN)/ruff format -q --check

docs: .venv/.stamp  ## Build the documentation into docs/_build
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

bench: .venv/.stamp-bench  ## Run every benchmark that takes minutes, not hours
	set -e; for script in $(filter-out benchmarks/jax_% benchmarks/posteriors.py benchmarks/volatility.py benchmarks/calibration.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## Remove the environment and everything built
	rm -rf .venv .venv-torch-* docs/_build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -e ".[dev,examples,docs]"
	touch $@

.venv/.stamp-bench: .venv/.stamp
	$(PIP_INSTALL) -e ".[bench]"
	touch $@
