# Needs python3 (3.11 or newer) with venv, and make. Everything else goes into .venv, and nothing outside this folder.
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
# Each core takes a part of the tests, and then half of what is left of another's.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test quick test-ray test-runtimes check docs bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## train the recommended network on handwritten digits, evaluate it, predict some images
	rm -rf runs/demo
	$(BIN)/hybrid-mobilenet train digits --family fmp --delta 2 --alpha 0.25 --epochs 15 --batch-size 32 --out runs/demo
	$(BIN)/hybrid-mobilenet evaluate runs/demo digits
	$(BIN)/python examples/write_digits.py runs/demo/images
	$(BIN)/hybrid-mobilenet predict runs/demo runs/demo/images
	@echo
	@echo "The model is in runs/demo. Its pictures: runs/demo/curves.png (training) and runs/demo/confusion.png (digits)."

test: $(READY) ## run all tests
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(READY) ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-ray: $(READY) ## install Ray (240 MB) and test the sweep on it
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock 'ray>=2.50'
	$(BIN)/python -m pytest tests/study/test_ray_engine.py

# litert-torch needs an older typing_extensions than the lock has, and so older versions of what stands on it: hence an
# environment of its own. ExecuTorch's binaries go with one version of torch, the lock's.
test-runtimes: ## install ExecuTorch and LiteRT (2 GB) in .venv-runtimes, and test exporting to them
	$(PYTHON) -m venv .venv-runtimes
	grep -vE '^(anyio|pydantic|pydantic_core|typing_extensions|typing-inspection)==' requirements.lock > .venv-runtimes/constraints.txt
	.venv-runtimes/bin/python -m pip install --disable-pip-version-check --constraint .venv-runtimes/constraints.txt \
	  --editable '.[export,executorch,litert]' 'executorch==1.5.1' 'litert-torch==0.10.0' pytest
	.venv-runtimes/bin/python -m pytest -p no:anyio tests/deploy/test_runtimes.py

check: $(READY) ## lint, format check and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(READY) ## build the API reference: build/docs/index.html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env --doctree-dir=build/doctrees docs/site build/docs

bench: $(READY) ## measure speed and memory against PyTorch and Keras, a quarter of an hour; writes results/bench.json
	$(BIN)/python benchmarks/bench.py

# A stamp, so that a changed lock or pyproject.toml is installed, and an interrupted installation is gone on with.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: try make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# pip's 25.1 was the first to know dependency groups. torch pins the CUDA packages that its Linux build needs itself;
# "+cpu" names a build, not a version, and would keep the lock from other platforms.
lock: ## resolve the dependencies anew; writes requirements.lock
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install 'pip>=25.1'
	.venv-lock/bin/python -m pip install 'torch==2.13.0' '.[export]' --group dev
	{ echo '# All versions the project is tested with, for Linux and macOS. Made by: make lock'; \
	  echo '# Installed by: pip install --requirement requirements.lock'; \
	  .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude hybrid-mobilenet \
	    | sed -E '/^(cuda-|nvidia-|triton)/d; s/\+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean: ## remove what the other targets made, except trained models (runs/)
	rm -rf .venv .venv-lock .venv-runtimes build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} +
