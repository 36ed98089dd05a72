# `make demo` and `make test` set up what they need, in .venv, and start from a bare Debian with Python, make and git.

PYTHON ?= python3
BIN := .venv/bin
DEMO := artifacts/demo

# Where a shell sets it, every process would compile torch, TVM and this toolkit from their sources again: seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint setup system-packages test-packages emulated-board clean

demo: setup
	$(BIN)/ksm-hw compile --target host --task all -o $(DEMO)
	$(BIN)/python examples/switch_tasks.py $(DEMO)
	$(BIN)/ksm-hw verify $(DEMO)
	$(BIN)/ksm-hw report $(DEMO) --html artifacts/report.html

# The emulated board is fetched while packages are installed and mypy computes. Then each of the two processes has one
# core: threads of torch and NumPy beyond that would wait for each other.
test:
	$(MAKE) --jobs 2 lint emulated-board
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(PYTEST_OPTIONS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/ready

# Made again when a dependency changes. Of these 3 GB few modules are ever imported: Python compiles those when they are.
.venv/ready: pyproject.toml | $(BIN)/pip
	@echo "Installing packages of about 3 GB into .venv, which takes minutes. Nothing is printed while it goes well."
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev,datasets,cuda]'
	touch $@

$(BIN)/pip: | system-packages
	$(PYTHON) -m venv .venv

# A linker, for compiled tasks become shared libraries, and Python's venv, which Debian packages apart. Where this may
# not install them, it says what to install.
system-packages:
	@missing=; \
	command -v cc >/dev/null || missing="gcc libc6-dev"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(call install,$$missing) || \
		{ echo "error: install these Debian packages first: sudo apt-get install $$missing"; exit 2; }

# What the tests look at beyond that, each part skipped with its reason where it is missing: Fashion-MNIST, an arm64
# cross compiler and emulator, an image decoder, an OpenCL device that runs on the CPU, and what kills a process at a
# system call.
TEST_PACKAGES := dataset-fashion-mnist g++ g++-aarch64-linux-gnu qemu-user mmdebstrap strace \
	libstb-dev ocl-icd-libopencl1 opencl-headers pocl-opencl-icd

test-packages: | system-packages
	@missing=; \
	for package in $(TEST_PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	$(call install,$$missing) || echo "Tests that need these Debian packages will be skipped:$$missing"

# An arm64 userland that qemu runs as a board. Only root can unpack one.
emulated-board: | $(BIN)/pip test-packages
	@if test "$$(id -u)" = 0 && command -v mmdebstrap >/dev/null; then \
		tests/emulated_board/make.sh build/emulated-board $(BIN)/pip; \
	else echo "No emulated arm64 board: that takes root and the Debian packages mmdebstrap and qemu-user."; fi

# Installs Debian packages; fails where it may not. Nothing to install is fine.
install = if test -n "$(strip $(1))"; then \
		root=; test "$$(id -u)" = 0 || root="sudo -n"; \
		$$root true 2>/dev/null && command -v apt-get >/dev/null && \
		$$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$root apt-get install -qq -y $(1) >/dev/null; fi

clean:
	rm -rf .venv artifacts build
