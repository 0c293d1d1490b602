# Two commands on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
RUN    ?= runs/optigradtrust
OUT    ?= runs/optigradtrust/evaluation
# Three of the held-out attacks, for a table in minutes; `--attacks held_out` is all of them.
FEW    := alie ipm min_max

# One thread a process: small networks gain nothing from a second one, and two processes share two cores.
export OMP_NUM_THREADS = 1

# Libraries that pin an older torch, or need more packages than the few functions that tests/oracles calls.
ORACLES := byzpy==0.1.4 flwr==1.42.0

# The native engine once more, with checks of every memory access and of undefined behaviour.
SANITIZED := build/sanitize
SANITIZE  := -fsanitize=address,undefined
CXX       ?= g++

# The policies that come with the package. Train attacks and validation data alone.
PRETRAINED := agents/pretrained

.PHONY: help setup setup-dev quickstart held-out pretrained controls test test-slow sanitize lint benchmark clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## Make .venv and install what training and benchmarks need.

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard fl_core/training/native/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[vision]'
	@touch $@

setup-dev: $(DEV_STAMP)  ## Add what tests and checks need, others' libraries to check against included.

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,oracles]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ORACLES)
	@touch $@

quickstart: setup  ## Train a trust policy, freeze it, benchmark it under attacks it never saw (a few minutes).
	$(BIN)/python train_agent.py --timesteps 2000 --run-dir $(RUN) --overwrite
	$(BIN)/python evaluate.py --policies $(RUN) --attacks $(FEW) --seeds 3 --out $(OUT) --overwrite
	@echo "curves: $(BIN)/tensorboard --logdir $(RUN)/tensorboard"

held-out: setup  ## Benchmark the shipped policy under every held-out attack (about an hour); writes runs/held_out.
	$(BIN)/python evaluate.py --preset held-out --out runs/held_out

pretrained: setup  ## Train the shipped policies anew (three quarters of an hour, 9 GiB; DATA has Fashion-MNIST's files).
	$(BIN)/python train_agent.py --num-clients 20 --n-envs 32 --scenarios broad --warm-start-length 10 --timesteps 61440 \
	  --eval-every 8192 --eval-episodes 60 --checkpoint-every 4096 --run-dir runs/digits --overwrite
	$(BIN)/python -m agents.publish runs/digits:update_clip=median_or_reference $(PRETRAINED)/digits
	cp runs/digits/evaluations.npz results/pretrained/digits.npz
	$(BIN)/python train_agent.py --env-id OptiGrad/FashionMNIST-v0 --start-from digits --warm-start gradient \
	  --update-clip median_or_reference --clone-weight 0.3 --warm-start-length 2 --warm-start-memory 6 \
	  --num-clients 20 --n-envs 16 --scenarios faint --timesteps 1024 --eval-every 1024 --eval-episodes 15 \
	  --select-by accuracy --run-dir runs/fashion_mnist --overwrite $(if $(DATA),--data-dir $(DATA))
	$(BIN)/python -m agents.publish runs/fashion_mnist:sybil_exponent=2 $(PRETRAINED)/fashion_mnist
	cp runs/fashion_mnist/evaluations.npz results/pretrained/fashion_mnist.npz

controls: setup  ## Fit the rules logistic and feature_weights on the train attacks; writes fl_core/aggregation/fitted.
	$(BIN)/python -m agents.controls

test: setup-dev  ## Run the tests.
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: setup-dev  ## Run the tests that take minutes.
	$(BIN)/python -m pytest -m slow

sanitize: setup-dev  ## Build the native engine with address and undefined-behaviour sanitizers and test it.
	rm -rf $(SANITIZED)
	OPTIGRAD_REQUIRE_NATIVE=1 LDFLAGS="$(SANITIZE)" \
	CXXFLAGS="$(SANITIZE) -fno-sanitize-recover=undefined -fno-omit-frame-pointer" \
	  $(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	OPTIGRAD_REQUIRE_NATIVE=1 OPTIGRAD_LIBRARY="$$(find "$(CURDIR)/$(SANITIZED)" -name '_kernels*.so')" \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  $(BIN)/python -m pytest tests/fl_core/training/test_native.py \
	  tests/fl_core/fingerprint/test_native_fingerprint.py tests/fl_core/aggregation/test_distance.py

lint: setup-dev  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py

benchmark: setup  ## Time a round, part by part; writes results/round.csv.
	$(BIN)/python benchmarks/round.py

clean:  ## Remove the virtual environment and caches; keeps runs/ and results/.
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
