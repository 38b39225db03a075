# make demo, make test: each sets up all it needs in .venv, from Python 3.11+, pip and make.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup --durations 10 tests
RESULTS := docs/compatibility
KERNELS := TRITON_INTERPRET=1 CUSTOMOPS_BACKEND=triton
# as many shares of what `make test` leaves out, each of 2 to 3 minutes on 2 cores
SHARES := 40
SHARE ?= 0
# the mode of compiled code, executed on the CPU: = the GPU to compile for
COMPILED := CUSTOMOPS_BACKEND=triton CUSTOMOPS_TEST_COMPILED
TARGET ?= cuda:90
# a user's program under strict checks, the package as checkers see one that is installed
STRICT := --strict --follow-imports silent --cache-dir .mypy_cache/strict tests/typed.py

.PHONY: demo distributed test test-share test-share-kernels test-compiled test-share-compiled test-full mutants accuracy compatibility gpu-test gpu-compatibility gpu audit lint bench bench-fused report docs dist smoke matrix clean

demo: .venv/ready
	$(BIN)/python examples/digits.py
	$(BIN)/python examples/wgan_gp.py
	$(BIN)/python examples/physics.py

distributed: .venv/ready  ## on two processes, by DDP, FSDP2 and tensor parallelism, in lockstep with one
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 examples/distributed_digits.py

test: .venv/ready  ## formulas and offline compilation, the kernels in Triton's interpreter, some compiled and executed
	$(PYTEST) --check
	$(KERNELS) $(PYTEST) --check
	$(COMPILED)=cuda:90 $(PYTEST) --part 0/40

test-compiled: .venv/ready  ## kernels compiled for GPUs and executed on the CPU: all for sm_90, parts for others
	$(COMPILED)=cuda:90 $(PYTEST)
	$(COMPILED)=cuda:80 $(PYTEST) --part 1/10
	$(COMPILED)=cuda:100 $(PYTEST) --part 2/10
	$(COMPILED)=cuda:120 $(PYTEST) --part 3/20

test-share: .venv/ready  ## a share of what `make test` leaves out, by formulas: make test-share SHARE=17
	$(PYTEST) --share $(SHARE)/$(SHARES)

test-share-kernels: .venv/ready  ## the same, by kernels
	$(KERNELS) $(PYTEST) --share $(SHARE)/$(SHARES)

test-share-compiled: .venv/ready  ## the same, by compiled code: make test-share-compiled SHARE=17 TARGET=cuda:80
	$(COMPILED)=$(TARGET) $(PYTEST) --share $(SHARE)/$(SHARES)

test-full: .venv/ready  ## every case and every compilation, however long
	$(PYTEST) --full
	$(KERNELS) $(PYTEST) --full
	$(COMPILED)=$(TARGET) $(PYTEST) --full

mutants: .venv/ready  ## plant faults in the product, one at a time, and tell which of make test's tests catch them
	$(BIN)/python -m tests.mutants --json tests/mutants.json

accuracy: .venv/ready  ## errors in ulp by compiled code, and docs/accuracy.md
	$(BIN)/python -m tests.compiled_accuracy

compatibility: .venv/ready  ## its tests again, then torch's own operators under them, and the page; what fails stands in it
	$(PYTEST) --record $(RESULTS)/formulas.json || test $$? -eq 1
	$(KERNELS) $(PYTEST) --record $(RESULTS)/kernels.json || test $$? -eq 1
	CUSTOMOPS_TEST_LIBRARY=torch $(PYTEST) --record $(RESULTS)/torch.json || test $$? -eq 1
	$(BIN)/python -m tests.compatibility

gpu-test:  ## the kernels on a GPU, with the torch and Triton that $(PYTHON) has there
	CUSTOMOPS_TEST_DEVICE=cuda CUSTOMOPS_BACKEND=triton $(PYTHON) -m pytest -q \
	  $(shell $(PYTHON) -c "import xdist; print('-n 8')" 2>/dev/null) tests

gpu-compatibility:  ## the same of docs/compatibility.md, on a GPU
	CUSTOMOPS_TEST_DEVICE=cuda CUSTOMOPS_BACKEND=triton $(PYTHON) -m pytest -q \
	  --record $(RESULTS)/gpu.json tests || test $$? -eq 1
	$(PYTHON) -m tests.compatibility

gpu: gpu-test  ## then the benchmark on the GPU, beside the model's estimates
	GIT_COMMIT=$$(git rev-parse HEAD 2>/dev/null) $(PYTHON) -m benchmarks --device cuda --minutes 2.5

audit: .venv/ready  ## widths, spills, launches and bytes of every call on a GPU, read from compiled kernels
	$(BIN)/python -m tests.audit

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(STRICT)
	$(BIN)/basedpyright

bench: .venv/ready  ## ours against torch on the CPU, about 15 minutes, and the page about it
	$(BIN)/python -m benchmarks --device cpu

bench-fused: .venv/ready  ## fused layers on the CPU against torch, half an hour and more, and the page about it
	$(BIN)/python -m benchmarks --fused --device cpu

report: .venv/ready  ## benchmarks/README.md and its plots, from the JSON there is
	$(BIN)/python -m benchmarks.report

docs: .venv/docs  ## the book of gradients in build/site, looked at in headless Chromium
	$(BIN)/python -m docs.book build/book
	$(BIN)/python -m sphinx -W --keep-going -q -j 2 -c docs build/book build/site
	CUSTOMOPS_TEST_SITE=build/site $(BIN)/python -m pytest -q tests/test_book_site.py

.venv/docs: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

dist: .venv/ready  ## sdist and wheel, and whether an index of packages would take them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

smoke: dist  ## each archive in a new environment with the pinned torch, then tests of the unpacked sdist
	$(BIN)/python -m tests.publish

matrix: .venv/ready  ## the tests on the oldest, the pinned and the newest torch and Triton: several GB, and the page
	$(BIN)/python -m tests.matrix

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	# torch by itself first: asked for as a range it would bring gigabytes of CUDA
	$(BIN)/python -m pip install -q -c constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
