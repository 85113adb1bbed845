# The commands of the README. Each sets up what it needs.
#
# LibTorch comes from PyPI's torch in a private virtual environment, outside of the checkout. To use
# your own: LIBTORCH=/path/to/libtorch, or LIBTORCH_USE_PYTORCH=1 for the torch of your python3.

SHELL := /bin/bash
PYTHON ?= python3
JOBS ?= $(shell nproc)
DEMO ?= demo-runs

TORCH_VERSION := 2.13.0
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/simfluence
VENV := $(CACHE)/libtorch-$(TORCH_VERSION)

ifeq ($(LIBTORCH)$(LIBTORCH_USE_PYTORCH),)
  SETUP := $(VENV)/ready
  export LIBTORCH = $(shell cat $(VENV)/ready 2>/dev/null)
endif

# The tests of the Python package have an environment of their own.
PYTHON_TESTS := $(CACHE)/python-tests
PYTHON_BIN := $(PYTHON_TESTS)/bin
# What `make parity` adds to it, in a folder of its own: no second torch.
PARITY := $(CACHE)/python-parity

CARGO_FLAGS := --release --features torch
BIN := $(or $(CARGO_TARGET_DIR),target)/release/simfluence

.PHONY: python-tests-environment parity-environment
.PHONY: demo test test-python wheel parity bench-python bench check setup build clean-demo what-if

demo: build
	@./data/demo.sh $(BIN) $(DEMO) $(JOBS)

# The whole workspace with LibTorch: unit, property, reference, end-to-end and doc tests.
test: setup
	cargo test $(CARGO_FLAGS) --workspace
	$(MAKE) test-python

# The Python package: its wheel, installed beside real transformers, PEFT and Lightning.
test-python: wheel
	$(PYTHON_BIN)/ruff check python
	$(PYTHON_BIN)/ruff format --check python
	cd python/tests && OMP_WAIT_POLICY=PASSIVE $(PYTHON_BIN)/python -m pytest -c ../pyproject.toml -p no:cacheprovider

# The wheel has no LibTorch in it, whatever is set up for the rest.
wheel: python-tests-environment
	rm -rf $(PYTHON_TESTS)/wheel
	env -u LIBTORCH -u LIBTORCH_USE_PYTORCH $(PYTHON_BIN)/maturin build --release --locked \
		--interpreter $(PYTHON_BIN)/python --manifest-path python/Cargo.toml --out $(PYTHON_TESTS)/wheel
	$(PYTHON_BIN)/python -m pip install --quiet --force-reinstall --no-deps $(PYTHON_TESTS)/wheel/*.whl

# Scores that other libraries computed, judged on real runs; prints the table of python/README.md.
parity: wheel parity-environment
	cd python/parity && PYTHONPATH=$(PARITY)/site OMP_WAIT_POLICY=PASSIVE $(PYTHON_BIN)/python -m pytest \
		-c ../pyproject.toml -p no:cacheprovider

# What recording costs in a real fine-tuning.
bench-python: wheel
	OMP_WAIT_POLICY=PASSIVE $(PYTHON_BIN)/python python/benches/overhead.py

# Criterion's benchmarks, then the same work done by what people use today.
bench: setup
	cargo bench --features torch --workspace --bench run_sets --bench fit_and_simulate --bench scores
	./benches/peers/run.sh
	./benches/peers/attribution/run.sh --ratios
	./benches/peers/fine_tuning/run.sh

# The tables of what-if answers in docs/results.md: make what-if NEWS=ag_news_test.csv
WHAT_IF ?= what-if-runs
what-if: build
	cargo build $(CARGO_FLAGS) --example reshuffled
	@./benches/what_if/run.sh $(WHAT_IF) $(NEWS) $(JOBS) $(BIN)

# Formatting, lints and docs with warnings denied, and the build without LibTorch.
check: setup
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps
	env -u LIBTORCH -u LIBTORCH_USE_PYTORCH cargo build --release --target-dir $(or $(CARGO_TARGET_DIR),target)

build: setup
	cargo build $(CARGO_FLAGS)

setup: $(SETUP)

# Only what the CPU path of LibTorch needs: about 20 s and 1.2 GB.
$(VENV)/ready:
	@echo "Setting up LibTorch $(TORCH_VERSION) in $(VENV)" >&2
	@rm -rf $(VENV) && mkdir -p $(CACHE)
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --no-deps torch==$(TORCH_VERSION) \
		'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
	@$(VENV)/bin/python -c 'import sysconfig, os; print(os.path.join(sysconfig.get_path("purelib"), "torch"))' > $@.tmp
	@mv $@.tmp $@

# Environments are made anew when what they should hold changes; `ready` says what they hold.
# torch from PyPI brings the CUDA libraries with it, without which it cannot be imported: 5 GB.
python-tests-environment: python/tests/requirements.txt
	@cmp -s $< $(PYTHON_TESTS)/ready || { \
		set -e; \
		echo "Setting up the environment of the Python tests in $(PYTHON_TESTS)" >&2; \
		rm -rf $(PYTHON_TESTS); mkdir -p $(CACHE); \
		$(PYTHON) -m venv $(PYTHON_TESTS); \
		$(PYTHON_BIN)/python -m pip install --quiet -r $<; \
		cp $< $(PYTHON_TESTS)/ready; }

parity-environment: python/parity/requirements.txt python-tests-environment
	@cmp -s $< $(PARITY)/ready || { \
		set -e; \
		echo "Setting up what the Python package is compared with in $(PARITY)" >&2; \
		rm -rf $(PARITY); mkdir -p $(PARITY); \
		$(PYTHON_BIN)/python -m pip install --quiet --no-deps --target $(PARITY)/site -r $<; \
		cp $< $(PARITY)/ready; }

clean-demo:
	rm -rf $(DEMO)
