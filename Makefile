.PHONY: install check test quickstart format

install:  ## make .venv and install the project with what its tests need
	bash -c 'set -euo pipefail; source scripts/venv.sh; install_for_tests'

check:  ## format, lint and types, in the installed .venv
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format:  ## rewrite the files as ruff wants them
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

test:  ## everything that CI runs
	bash scripts/test.sh

quickstart:  ## the main job on this machine
	bash scripts/quickstart.sh
