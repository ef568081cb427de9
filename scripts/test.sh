#!/usr/bin/env bash
# Installs the project with its tests' needs, checks format, lint and types, and runs all tests that need no GPU.
# Arguments restrict pytest: a folder of tests/ (scripts/test.sh unit) or anything pytest takes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install_for_tests
install_chromium
export PATH="$PWD/.venv/bin:$PATH"

pytest_arguments=()
for argument in "$@"; do
    if [[ -n "$argument" && -d "tests/$argument" ]]; then
        argument="tests/$argument"
    fi
    pytest_arguments+=("$argument")
done

say "ruff format --check"
ruff format --check .
say "ruff check"
ruff check .
say "mypy"
mypy
say "pytest (tests/gpu is skipped where there is no GPU)"
python -m pytest "${pytest_arguments[@]}"
