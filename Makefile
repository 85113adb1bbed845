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

CARGO_FLAGS := --release --features torch
BIN := $(or $(CARGO_TARGET_DIR),target)/release/simfluence

.PHONY: demo test bench check setup build clean-demo what-if

demo: build
	@./data/demo.sh $(BIN) $(DEMO) $(JOBS)

# The whole workspace with LibTorch: unit, property, reference, end-to-end and doc tests.
test: setup
	cargo test $(CARGO_FLAGS) --workspace

# Criterion's benchmarks, then the same work done by what people use today.
bench: setup
	cargo bench --features torch --workspace --bench run_sets --bench fit_and_simulate --bench scores
	./benches/peers/run.sh
	./benches/peers/attribution/run.sh --ratios

# The tables of what-if answers in docs/results.md: make what-if NEWS=ag_news_test.csv
WHAT_IF ?= what-if-runs
what-if: build
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

clean-demo:
	rm -rf $(DEMO)
