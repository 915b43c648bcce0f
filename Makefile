# Two commands for a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Most tests wait for a deadline most of the time, so some run beside each other.
BESIDE ?= -n 4 --dist loadgroup
STRESS_SECONDS ?= 30
STRESS_CALLS ?= 1000
FUZZ_SECONDS ?= 20
PYTHON_SOURCES := python tests benchmarks examples docs/reference_extension.py
# The wheel asks for no glibc younger than that of 2012, so it runs wherever CPython does: zig's linker
# has the symbols of all of them. `make wheel WHEEL_FLAGS=` links with what this machine has.
WHEEL_FLAGS ?= $(if $(filter Linux,$(shell uname -s)),--zig --compatibility manylinux_2_17)
RUST_SOURCES := Cargo.toml Cargo.lock build.rs pyproject.toml $(shell find src -name '*.rs')

.PHONY: all demo test test-rust test-python coverage test-package test-wheel stress fuzz bench compare build-dev wheel format lint typecheck docs clean

all: test lint typecheck docs stress

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

# The tools, from the dependency groups of pyproject.toml.
$(VENV)/.tools: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group build --group test --group lint
	@touch $@

# The wheel, built once and installed as a user would get it.
$(VENV)/.wheel: $(RUST_SOURCES) $(wildcard python/killercall/*) | $(VENV)/.tools
	rm -rf dist
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/maturin build --release --quiet $(WHEEL_FLAGS) --out dist --interpreter $(BIN)/python
	$(BIN)/maturin sdist --out dist
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps dist/*.whl
	$(BIN)/python -m pip install --quiet "cloudpickle>=3.1" "tqdm>=4.66"
	@touch $@

$(VENV)/.demo: $(VENV)/.wheel
	$(BIN)/python -m pip install --quiet "arch>=7.2" "matplotlib>=3.9"
	@touch $@

wheel: $(VENV)/.wheel

demo: $(VENV)/.demo
	$(BIN)/python examples/garch_sp500.py

test: test-rust test-python coverage test-package test-wheel

test-rust: | $(BIN)/python
	PYO3_PYTHON=$(abspath $(BIN)/python) LD_LIBRARY_PATH=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_config_var('LIBDIR') or '')") cargo test --quiet

test-python: $(VENV)/.wheel
	$(BIN)/python -m pytest tests --ignore tests/stress $(BESIDE)

# Which lines of the package no test runs, in the host or in any other process. Of the tests a part, as
# measured processes are slow and large.
coverage: $(VENV)/.wheel
	$(BIN)/python tests/measured $(BESIDE)

# The same wheel where nothing else is, and one that is built from the source distribution.
test-package: $(VENV)/.wheel
	$(BIN)/python tests/packages.py dist/*.whl dist/*.tar.gz

# The same wheel on every other CPython from 3.11 up that the machine has, where that may matter.
test-wheel: $(VENV)/.wheel
	$(BIN)/python tests/other_pythons.py dist/*.whl $(BESIDE)

# A build that can be told to fail, beside the real one and in nobody's way.
build/faults/.built: $(RUST_SOURCES) $(wildcard python/killercall/*) | $(VENV)/.tools
	rm -rf build/faults
	$(BIN)/maturin build --profile faults --features fault-injection --quiet --out build/faults/dist --interpreter $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --target build/faults build/faults/dist/*.whl
	@touch $@

stress: $(VENV)/.wheel build/faults/.built
	KILLERCALL_STRESS_SECONDS=$(STRESS_SECONDS) KILLERCALL_STRESS_CALLS=$(STRESS_CALLS) \
		$(BIN)/python -m pytest tests/stress -q

$(VENV)/fuzz/bin/cargo-fuzz: | $(BIN)/python
	cargo install --quiet --locked --debug --root $(VENV)/fuzz cargo-fuzz@0.13.2

# Each target for a while, from the kept corpus on. `make test` runs the same functions on random bytes
# and on the corpus.
# The sanitizer is an unstable option of the compiler, which takes it with RUSTC_BOOTSTRAP.
# What is new goes to fuzz/target; to keep it, see CONTRIBUTING.md.
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz: export PATH := $(abspath $(VENV)/fuzz/bin):$(PATH)
fuzz: $(VENV)/fuzz/bin/cargo-fuzz
	cargo fuzz build
	@for target in $$(cargo fuzz list); do \
		mkdir -p fuzz/target/corpus/$$target && \
		cargo fuzz run $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=1024 -verbosity=0 -print_final_stats=1 \
			|| exit 1; \
	done

$(VENV)/.bench-light: pyproject.toml $(VENV)/.wheel
	$(BIN)/python -m pip install --quiet --group bench-light
	@touch $@

$(VENV)/.bench: $(VENV)/.bench-light
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

# Writes docs/benchmarks.md in about 15 minutes. QUICK=1 only checks that every measurement runs.
bench: $(VENV)/.bench$(if $(QUICK),-light)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

# The instructions of a warm call and of a map, at two commits.
compare: | $(BIN)/python
	$(BIN)/python -m benchmarks.compare $(A) $(B)

format: $(VENV)/.tools
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)

lint: $(VENV)/.tools
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --features fault-injection -- -D warnings
	cargo clippy --quiet --no-default-features --features fuzzing -- -D warnings
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	@# pyo3 belongs to src/python; unsafe, libc and nix belong to src/sys. Python's buffers and calls are both.
	@! grep -rnE '\bpyo3\b' src --include='*.rs' --exclude-dir=python --exclude=lib.rs
	@! grep -rnE '\bunsafe\b|\blibc\b|\bnix::' src --include='*.rs' --exclude-dir=sys --exclude=lib.rs --exclude=buffers.rs --exclude=calls.rs

typecheck: $(VENV)/.wheel
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/python -m mypy.stubtest killercall --mypy-config-file pyproject.toml --ignore-missing-stub \
		--allowlist tests/typing/stubtest.txt

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

# The site, in build/site. It is made from the sources alone, so the package need not be installed.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist target
