# Two doors for a newcomer: `make demo` and `make test`. Each does its own set-up in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= examples/nuclei

.PHONY: help demo test test-fast lint bench report-check environments-check gpu-check weights docs clean

help:
	@echo "make demo       export the four networks, prove them, time them, segment examples/nuclei"
	@echo "make test       lint, types, every test"
	@echo "make test-fast  the same without the slow tests"
	@echo "make bench      long measurements: the four networks over DATA=folder, full-size timings"
	@echo "make report-check  test the report in Chromium, which must be there"
	@echo "make environments-check  run every command with every set of extras, as pip installs them"
	@echo "make gpu-check  test and time what needs an NVIDIA GPU, with PYTHON=python3 as it is; no network"
	@echo "make weights    train the packaged weights anew on DATA=folder (an hour and a half on one core)"
	@echo "make docs       write docs/cli.md and the signatures of docs/python.md anew"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A worker that crashed is not replaced: pytest-xdist 3.8 then waits for ever after the last test.
WORKERS := -n 2 --dist loadgroup --max-worker-restart 0

# Two workers with two OpenMP threads each would spend two cores on waiting for one another.
test test-fast: export OMP_NUM_THREADS = 1

test: lint
	$(BIN)/pytest $(WORKERS)

test-fast: lint
	$(BIN)/pytest $(WORKERS) -m "not slow"

bench: $(READY)
	$(BIN)/python benchmarks/run.py --data $(DATA)

# Without Chromium these tests are skipped in `make test`; here they fail.
report-check: $(READY)
	SEGDEPLOY_REQUIRE=chromium $(BIN)/pytest -n 0 tests/benchmarks/test_report.py tests/benchmarks/test_report_in_chromium.py

# `make test` links what is installed here into such environments; here pip fills them.
environments-check: $(READY)
	SEGDEPLOY_REQUIRE=pip $(BIN)/pytest -n 0 tests/cli/test_environments.py

# No virtual environment: the machine's own Python has the runtimes that are to be tried.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

# The commands of segdeploy/weights/README.md, one after the other; DATA is the folder of all nuclei.
weights: $(READY)
	grep -o 'segdeploy train [^`]*' segdeploy/weights/README.md | sed 's|--data nuclei|--data $(DATA)|' \
	    | while read -r command; do $(BIN)/$$command --out checkpoints || exit 1; done

docs: $(READY)
	$(BIN)/python docs/write_cli.py
	$(BIN)/python docs/write_python.py

clean:
	rm -rf $(VENV) build dist demo
