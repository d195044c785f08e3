# Every command of the project. Each target makes its own environment first; a second call finds it ready.
.DEFAULT_GOAL := help
.PHONY: help env setup test book serve linkcheck runs models report lint format bench clean

PYTHON ?= $(shell command -v python3.11 || echo python3)
PORT ?= 8000
VENV := .venv/bin/python
JOBS ?= 2
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:
	@$(PYTHON) tools/setup_env.py

setup: env ## install exact versions into .venv, and find or install a browser for the tests
	@$(VENV) -m tools.browser

test: setup ## unit tests, doctests, invariants, notebooks under `smoke`, the built site in a browser (12 to 15 minutes on two cores)
	@$(VENV) -m pytest --numprocesses $(JOBS) --dist loadgroup

book: env ## execute the notebooks and build the static book into _build/site (opens from disk, needs no network)
	@$(VENV) -m tools.build_book --jobs $(JOBS)

serve: book ## show the built book at http://127.0.0.1:8000 (PORT=... for another port)
	@$(VENV) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/site

linkcheck: env ## follow every outside link of the book (needs the internet; never part of `test`)
	@$(VENV) -m tools.build_book --jobs $(JOBS) --linkcheck

runs: env ## train whatever run is missing and rewrite data/results/PROFILE (toy; hours; resumable); ADD=1 trains only what the tables lack
	@$(VENV) -m tools.make_runs --profile $(or $(PROFILE),toy) --workers $(JOBS) $(if $(ADD),--add)

models: env ## rebuild base, anchor and teacher in data/models (up to two hours)
	@$(VENV) -m tools.build_models

report: env ## where your run lies: REFERENCE=... TUNED=... [BASE= REVISION= K= LABEL= MODULES= STRICT=0 ALLOW_PICKLE=1 EXACT_NULLS=1 LEARNING_RATE= UPDATES= SCHEDULE= WARMUP= PARAMETERS= OUT=], one HTML file and a table
	@$(VENV) -m opdgeom_utils.cli report --jobs $(JOBS) $(if $(BASE),--base "$$BASE") $(if $(REVISION),--revision "$$REVISION") \
	  $(if $(K),--k "$$K") $(if $(LABEL),--label "$$LABEL") $(if $(MODULES),--modules "$$MODULES") $(if $(OUT),--out "$$OUT") \
	  $(if $(filter 0,$(STRICT)),--no-strict) $(if $(filter 1,$(ALLOW_PICKLE)),--allow-pickle) \
	  $(if $(filter 1,$(EXACT_NULLS)),--exact-nulls) \
	  $(if $(LEARNING_RATE),--learning-rate "$$LEARNING_RATE") $(if $(UPDATES),--updates "$$UPDATES") \
	  $(if $(SCHEDULE),--schedule "$$SCHEDULE") $(if $(WARMUP),--warmup "$$WARMUP") \
	  $(if $(PARAMETERS),--parameters "$$PARAMETERS") -- "$$REFERENCE" "$$TUNED"

lint: env ## ruff over code and notebooks, pyright over the package, notebook pairs
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m pyright
	@$(VENV) -m tools.pair --check

format: env ## rewrite code and notebooks in the house format, and derive every .ipynb from its .md
	@$(VENV) -m ruff check --fix .
	@$(VENV) -m tools.pair --format
	@$(VENV) -m ruff format .

bench: env ## our updates beside TRL's, in one run
	@$(VENV) benchmarks/toy_step.py

clean: ## remove everything that was built, except the environments, data/runs and reports
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
