# make demo: from a fresh clone to registered models that have mapped a new basin.
# make test: all checks and tests.
# make structure: figures of the code's structure, with their limits.
# make docs: the documentation site, in docs/_build/html; no network is needed.
# make team: what a team has, on this machine alone: PostgreSQL, MLflow with a login, Dask; and a small study on it.
# make page: the service's review page, built from page/ with Node; the service runs without it, but shows no page.
# make bench: speed of inference and training, with targets; half an hour on an idle machine.

PYTHON ?= python3
BIN := .venv/bin
# Python compiles a module when it first imports it: of twenty thousand, few are ever imported. It keeps the result,
# also where the caller's environment says otherwise: each of hundreds of processes would compile TensorFlow again.
unexport PYTHONDONTWRITEBYTECODE
PIP := pip install --disable-pip-version-check --no-compile --constraint requirements.lock --editable

# Nothing calls out: the usage statistics of MLflow and DVC are off.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
# The pipeline's commands find this environment's talud without its being activated.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint structure docs page team bench clean

demo: $(BIN)/.train
	@echo "== sample data (synthetic)"
	@dvc pull --quiet data.dvc
	@echo "== pipeline: stack, train, quantize, predict, evaluate, register, baseline, report"
	@dvc repro
	@talud register
	@echo
	@echo "report     reports/index.html"
	@echo "maps       predictions/BAND_SET/AREA/: quicklook.png to look at, landslides.gpkg for a GIS"
	@echo "trials     .venv/bin/talud ui"

# Three processes on two cores, because tests also wait: for servers, timeouts and killed processes.
test: lint
	@pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(BIN)/.dev
	@ruff check
	@ruff format --check
	@mypy
	@lint-imports

structure: $(BIN)/.dev
	@python bench/structure.py

docs: $(BIN)/.dev
	@sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "site       docs/_build/html/index.html"

PAGE := src/talud/serving/static

page:
	@command -v npm >/dev/null || { echo "make page needs Node 20.19 or newer, with npm: https://nodejs.org" >&2; exit 1; }
	@echo "== the review page's libraries, as pinned in page/package-lock.json"
	@npm --prefix page ci --ignore-scripts
	@echo "== types checked, page built"
	@npm --prefix page run build
	@echo
	@echo "page       $(PAGE)/index.html, which the service shows under /page/"
	@echo "licences   $(PAGE)/licences.txt, of all that is bundled"

team: $(BIN)/.dev
	@dvc pull --quiet data.dvc
	@dvc repro --quiet stack@synthetic_argelia
	@python team/run.py

bench: $(BIN)/.dev
	@python bench/run.py

clean:
	@rm -rf .venv docs/_build docs/reference/_generated

$(BIN)/pip:
	@echo "== virtual environment in .venv"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "talud needs Python 3.11 or 3.12, and '$(PYTHON)' is another; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

$(BIN)/.train: $(BIN)/pip requirements.lock pyproject.toml
	@echo "== pinned dependencies (3.6 GB once unpacked)"
	@$(PIP) '.[train]'
	@touch $@

# It holds all of .train too, so that a fresh clone in which only tests run installs once.
$(BIN)/.dev: $(BIN)/pip requirements.lock pyproject.toml
	@echo "== pinned dependencies of the project and its tests (4 GB once unpacked)"
	@$(PIP) '.[train,cluster,server,serve,dev]'
	@touch $(BIN)/.train $@
