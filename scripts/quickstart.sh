#!/usr/bin/env bash
# Teaches a pretrained Llama Chinese on this machine, from installation to report. Run it again to go on where it
# stopped. Arguments go to the quickstart: --tiny, --plugin NAME, --processes N, --output_dir FOLDER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

install_for_quickstart
say "quickstart"
exec .venv/bin/python -m colossal_llama.commands.quickstart "$@"
