#!/usr/bin/env bash
# Installs the package with its test dependencies into a virtual environment of its own and runs every test.
# Usage: bash run_scripts/test.sh [--extended] [pytest arguments]       VENV=dir chooses another place than .venv-test
# --extended runs the slower campaigns too, and then the trainers' tests with the newest transformers that setup.py
# allows; the oldest is that of configs/constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv-test}"
STAMP="$VENV/.installed-$(cat setup.py configs/constraints.txt | sha256sum | cut -c1-16)"
if [ ! -f "$STAMP" ]; then
  echo "Installing into $VENV (first run or changed dependencies; several GB) ..."
  python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet -c configs/constraints.txt -e ".[dev,reasoning,deepspeed,video]"
  touch "$STAMP"
fi
# A browser and a sandbox, for the tests that are skipped without them; only root of a Debian system can install them.
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! { command -v chromium && command -v bwrap; } > /dev/null; then
  echo "Installing chromium and bubblewrap ..."
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium bubblewrap fonts-liberation; } \
    > /dev/null 2>&1 || echo "They cannot be installed here: their tests are skipped." >&2
fi
# One worker for each core, up to four, each with one thread.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$VENV/bin/python" -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
case " $* " in
  *" --extended "*) VENV="$VENV" bash run_scripts/test_transformers.sh 5.24.0 ;;
esac
