# Every target makes its own environment when there is none and installs into it once.
PYTHON ?= python3
VENV ?= .venv

# Threads that wait give up their core. By default GNU OpenMP spins, which on a machine that other processes share
# makes a training step many times slower.
export OMP_WAIT_POLICY := passive

# Each core takes one file of tests at a time, and computes with one thread.
PYTEST := pytest --numprocesses logical --dist loadfile --no-loadscope-reorder
test wheel-test: export OMP_NUM_THREADS := 1

.PHONY: demo test bench gpu-suite lint wheel-test clean

demo: $(VENV)/.installed-train
	rm -rf run/digits
	$(VENV)/bin/fastsdot train --data digits --cost l1 --rounds 12 --out run/digits
	$(VENV)/bin/fastsdot evaluate run/digits

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m $(PYTEST)

bench: $(VENV)/.installed-bench
	$(VENV)/bin/python -m pytest benchmarks --benchmark-only

# With the interpreter that has torch for the GPU; nothing is installed.
gpu-suite:
	$(PYTHON) benchmarks/gpu_suite.py

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The tests against the built wheel, in an empty environment, from a folder where the checkout cannot be imported.
wheel-test:
	rm -rf .wheel-test build
	$(PYTHON) -m venv .wheel-test/venv
	.wheel-test/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir .wheel-test .
	.wheel-test/venv/bin/python -m pip install --quiet "fastsdot[test] @ file://$$(ls $(CURDIR)/.wheel-test/*.whl)" -c constraints.txt
	.wheel-test/venv/bin/python -m pip install --quiet --no-deps torchcfm -c constraints.txt
	cp -R tests examples README.md pyproject.toml .wheel-test/
	cd .wheel-test && venv/bin/$(PYTEST)

clean:
	rm -rf $(VENV) .wheel-test build *.egg-info .pytest_cache .benchmarks

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]' -c constraints.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps torchcfm -c constraints.txt
	touch $@
