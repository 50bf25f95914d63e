# Each target brings what it needs: uv, the virtual environment, the pinned packages. All it takes is python3,
# make and a network.

VENV := .venv
PYTHON = $(VENV)/bin/python
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
WORKERS ?= 2
LEROBOT_TESTS ?= tests/policy tests/envs tests/eval/commands tests/docs
export MUJOCO_GL ?= egl
export TOKENIZERS_PARALLELISM ?= false
# Without compiled modules every command takes 22 seconds to start instead of 9 (two cores, torch 2.11, lerobot 0.6.1).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-tools test-slow test-lerobot docs lint types format lock clean

demo: $(VENV)/.installed
	$(VENV)/bin/aegis-demo $(DEMO_FLAGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder \
		-m "not slow and not tools" --durations=25 $(TEST_FLAGS)

# What needs another tool or service beside it (Ray, Sphinx, build and twine, other people's packages), with the
# machine to itself.
test-tools: $(VENV)/.installed .other_packages/.installed
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "tools and not slow" --durations=5 $(TEST_FLAGS)

.other_packages/.installed: tests/other_packages/requirements.txt | $(VENV)/.installed
	$(UV) pip install --quiet --python $(PYTHON) --target .other_packages --no-deps --requirement $<
	touch $@

test-slow: $(VENV)/.installed
	$(PYTHON) -m pytest -m slow $(TEST_FLAGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(MAKE) --no-print-directory types

# What touches LeRobot, with another one: LEROBOT is a requirement or the folder of a checkout. All else is as in the
# lock. diffusers is for LeRobot's --ema.enable.
test-lerobot: VENV := .venv-lerobot
test-lerobot: | $(UV)
	@test -n "$(LEROBOT)" || { echo "Say which: LEROBOT=lerobot==0.6.1, or LEROBOT=FOLDER of a checkout."; exit 2; }
	$(UV) venv --quiet --allow-existing --python "$$(cat .python-version)" $(VENV)
	echo "$(if $(wildcard $(LEROBOT)/.),lerobot @ file://$(abspath $(LEROBOT)),$(LEROBOT))" > $(VENV)/lerobot.txt
	$(UV) pip install --quiet --no-sources --python $(PYTHON) --reinstall-package lerobot \
		--override $(VENV)/lerobot.txt --requirement requirements.lock diffusers
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder \
		-m "not slow and not tools" $(LEROBOT_TESTS) $(TEST_FLAGS)

docs: $(VENV)/.installed
	$(PYTHON) -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo "wrote build/docs/index.html"

types: $(VENV)/.installed
	$(VENV)/bin/mypy --python-executable $(PYTHON)

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed: pyproject.toml requirements.lock | $(UV)
	$(UV) venv --quiet --allow-existing --python "$$(cat .python-version)" $(VENV)
	$(UV) pip install --quiet --python $(PYTHON) --requirement requirements.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	touch $@

# The versions everyone gets. Compiled without hashes or addresses: any index will do.
lock: | $(UV)
	$(UV) pip compile --quiet --universal --python-version "$$(cat .python-version)" --group dev \
		--no-header --no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet uv

clean:
	rm -rf $(VENV) .venv-lerobot .other_packages .uv build dist *.egg-info outputs
