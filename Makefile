# make install   the environment in .venv (skipped while requirements.txt and pyproject.toml stay the same)
# make demo      a synthetic street, a model trained on it, and its scores on drives it has not seen
# make test      style checks and the tests
# make test-long the tests that take minutes each
# make lint      the style checks alone
# make clean     removes what the targets above made
#
# Variables: PYTHON=python3.12 another interpreter; RUN=runs/other the demo's run directory; PIP_FLAGS= for pip, as in
# PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu': torch without CUDA, a fraction of the download.

PYTHON = python3
PIP_FLAGS =
RUN = runs/demo

BIN = .venv/bin
TEST_TOOLS = 'pytest>=8' 'pytest-xdist>=3.6' 'ruff>=0.17,<0.18' 'av>=14.2' \
	'matplotlib>=3.9' 'onnx>=1.17' 'onnxruntime>=1.20' 'onnxscript>=0.5' 'opencv-python-headless>=5' \
	'scipy>=1.11' 'h5py>=3.10' 'transformers>=5.20'
DEBIAN = on Debian and Ubuntu: apt install python3 python3-venv

.PHONY: install demo test test-long lint clean

install: .venv/.installed

# While .venv/.installing is there the environment is not whole, and the next call makes it anew.
.venv/.installed: requirements.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || \
		{ echo "error: no $(PYTHON) here; install Python 3.10 or newer ($(DEBIAN)) or give PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "error: $(PYTHON) cannot make virtual environments; install its venv module ($(DEBIAN))" >&2; exit 2; }
	@test ! -e .venv || test -e $@ || test -e .venv/.installing || \
		{ echo "error: .venv is there already, and not from make install; move it away" >&2; exit 2; }
	@test -e $@ || { rm -rf .venv && mkdir .venv && touch .venv/.installing && $(PYTHON) -m venv .venv; }
	@test ! -e $@ || mv $@ .venv/.installing
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r requirements.txt $(TEST_TOOLS)
	@mv .venv/.installing $@ && touch $@

# The demo's own directories are made anew each time; any other is left to its owner.
demo: install
ifeq ($(RUN),runs/demo)
	rm -rf $(RUN) $(RUN)_data
endif
	@for path in '$(RUN)' '$(RUN)_data'; do test ! -e "$$path" || \
		{ echo "error: $$path exists; remove it, or choose another: make demo RUN=..." >&2; exit 2; }; done
	$(BIN)/python -m featdepth.data.synthetic '$(RUN)_data' --seed 5
	$(BIN)/python train.py --config configs/demo.yaml \
		run.directory='$(RUN)' data.root='$(RUN)_data' data.split='$(RUN)_data/splits'
	$(BIN)/python evaluate.py --config configs/demo.yaml --checkpoint '$(RUN)/model' \
		run.directory='$(RUN)' data.root='$(RUN)_data' data.split='$(RUN)_data/splits'
	@echo "Pictures of what the model sees and predicts: $(RUN)/images"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-long: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load -m long

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs/demo runs/demo_data build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
