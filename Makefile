# `make demo` and `make test` set up what they need, in .venv, and start from a bare Debian with Python, make and git.

PYTHON ?= python3
BIN := .venv/bin
DEMO := artifacts/demo

.PHONY: demo test lint setup system-packages clean

demo: setup
	$(BIN)/ksm-hw compile --target host --task all -o $(DEMO)
	$(BIN)/python examples/switch_tasks.py $(DEMO)
	$(BIN)/ksm-hw verify $(DEMO)
	$(BIN)/ksm-hw report $(DEMO) --html artifacts/report.html

test: setup lint
	$(BIN)/pytest $(PYTEST_OPTIONS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/ready

# Made again when a dependency changes.
.venv/ready: pyproject.toml | system-packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,datasets]'
	touch $@

# A linker, for compiled tasks become shared libraries, and Python's venv, which Debian packages apart. Where this may
# not install them, it says what to install. Fashion-MNIST is for the tests of its loader, which are skipped without it.
system-packages:
	@missing=; \
	command -v cc >/dev/null || missing="gcc libc6-dev"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	wanted=; test -d /usr/share/datasets/fashion-mnist || wanted=dataset-fashion-mnist; \
	root=; test "$$(id -u)" = 0 || root="sudo -n"; \
	if test -n "$$missing$$wanted" && $$root true 2>/dev/null && command -v apt-get >/dev/null; then \
		$$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$root apt-get install -qq -y $$missing $$wanted; \
	elif test -n "$$missing"; then \
		echo "error: install these Debian packages first: sudo apt-get install $$missing"; exit 2; \
	fi

clean:
	rm -rf .venv artifacts
