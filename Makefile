# shala: the front door. `make help` lists what there is.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

.PHONY: help demo demo-down check test faults simulate bench venv engine images wheelhouse requirements

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo:  ## Boot the lab fleet, do one full round, show the archive (root; 5 to 20 minutes, by the machine)
	@lab/demo.sh up

demo-down:  ## Take the lab fleet down, and the Docker engine if the lab started it
	@lab/demo.sh down

check: venv  ## Lint, types and unit tests: no Docker, under three minutes
	@lab/check.sh

test:  ## Everything: check, the packages over ssh and docker, molecule for every role, the fleet (about an hour on two cores)
	@lab/test.sh

faults: venv  ## Kill, starve and mislead the agent a few hundred times (SHALA_FAULTS=n: more); write docs/reliability.md
	@lab/bootstrap.sh engine
	lab/faults.sh
	python lab/reliability_docs.py

simulate: venv  ## Simulate zone sync in a world of faults: make simulate RUNS=1000 [SEED=n]
	@PYTHONPATH=central/tests python -m simulator --runs "$(or $(RUNS),100)" $(if $(SEED),--seed "$(SEED)") $(if $(STEPS),--steps "$(STEPS)") $(if $(STORY),--story)

bench: venv  ## Run a benchmark: make bench NAME=archive
	@have=$$(find bench -name '*.py' -printf '%f ' 2>/dev/null | sed 's/\.py / /g')
	test -f "bench/$(NAME).py" || { echo "shala: say which: make bench NAME=... (there are: $${have:-none yet})" >&2; exit 2; }
	python "bench/$(NAME).py"

venv:  ## Make or refresh the virtual environment .venv
	@lab/bootstrap.sh venv

images: venv  ## Build the lab's images (what has not changed is not built again)
	@lab/bootstrap.sh engine
	lab/images.sh

wheelhouse: venv  ## Pack the agent and the centre for machines without internet: build/*-wheelhouse.tar
	@lab/wheelhouse.sh

requirements:  ## Compile requirements/*.txt anew from the pyproject files
	@lab/requirements.sh

role-%:  ## Run the molecule scenario of one role: make role-gstudio
	@test -d roles/$* || { echo "shala: there is no role $* (have: $$(cd roles && echo *))" >&2; exit 2; }
	$(MAKE) wheelhouse images
	cd roles/$* && molecule test
