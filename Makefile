# Needs make, and Python 3.11 or newer with venv. Everything else is installed into .venv.
# To use another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# Each core takes a part of the tests, and then half of what is left of another's.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test quick test-ray test-runtimes check docs bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## train the recommended network on handwritten digits, evaluate it, and classify some images
	rm -rf runs/demo
	$(BIN)/hybrid-mobilenet train digits --family fmp --delta 2 --alpha 0.25 --epochs 15 --batch-size 32 --out runs/demo
	$(BIN)/hybrid-mobilenet evaluate runs/demo digits
	$(BIN)/python examples/write_digits.py runs/demo/images
	$(BIN)/hybrid-mobilenet predict runs/demo runs/demo/images
	@echo
	@echo "The model is in runs/demo. Its pictures: runs/demo/curves.png (training) and runs/demo/confusion.png (digits)."

# Bytecode is kept: otherwise each of some hundred processes that tests start compiles the sources again.
test quick: export PYTHONDONTWRITEBYTECODE =

test: $(READY) ## run all tests
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(READY) ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-ray: $(READY) ## install Ray (240 MB) and test the sweep on it
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock 'ray>=2.50'
	$(BIN)/python -m pytest tests/study/test_ray_engine.py

# litert-torch needs an older typing_extensions than the lock, and older versions of the packages that depend on it. So
# it gets a separate environment. ExecuTorch's binaries work only with the torch version of the lock.
test-runtimes: ## install ExecuTorch and LiteRT (2 GB) into .venv-runtimes, and test exporting to them
	$(PYTHON) -m venv .venv-runtimes
	grep -vE '^(anyio|pydantic|pydantic_core|typing_extensions|typing-inspection)==' requirements.lock > .venv-runtimes/constraints.txt
	.venv-runtimes/bin/python -m pip install --disable-pip-version-check --constraint .venv-runtimes/constraints.txt \
	  --editable '.[export,executorch,litert]' 'executorch==1.5.1' 'litert-torch==0.10.0' pytest
	.venv-runtimes/bin/python -m pytest -p no:anyio \
	  tests/deploy/test_runtimes.py tests/deploy/test_executorch.py tests/deploy/test_pt2e.py

check: $(READY) ## check lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(READY) ## build the API reference: build/docs/index.html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env --doctree-dir=build/doctrees docs/site build/docs

bench: $(READY) ## compare speed and memory with PyTorch and Keras (15 minutes); writes results/bench.json
	$(BIN)/python benchmarks/bench.py

# The stamp file reinstalls after a change of the lock or pyproject.toml, and resumes an interrupted installation.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# pip supports dependency groups since 25.1. torch itself pins the CUDA packages of its Linux build. "+cpu" names a
# build that other platforms lack, so it is removed.
lock: ## resolve the dependencies again; writes requirements.lock
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install 'pip>=25.1'
	.venv-lock/bin/python -m pip install 'torch==2.13.0' '.[export]' --group dev
	{ echo '# All versions the project is tested with, for Linux and macOS. Made by: make lock'; \
	  echo '# Installed by: pip install --requirement requirements.lock'; \
	  .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude hybrid-mobilenet \
	    | sed -E '/^(cuda-|nvidia-|triton)/d; s/\+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean: ## remove all files made by the other targets, except trained models (runs/)
	rm -rf .venv .venv-lock .venv-runtimes build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} +
