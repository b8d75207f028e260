#!/usr/bin/env bash
# Install the package with its test dependencies into a separate virtual environment and run all tests.
# Usage: bash run_scripts/test.sh [--extended] [pytest arguments]
# Without pytest arguments the tests with a real vLLM follow (run_scripts/test_vllm.sh), in an environment of its own.
# --extended also runs the slow campaigns, and then the trainers' tests with the newest transformers that setup.py allows
# (configs/constraints.txt pins the oldest).
# Environment: VENV is the folder of the virtual environment (default .venv-test), VLLM_VENV that of vLLM's (.venv-vllm).
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
# Some tests are skipped without a browser and a sandbox. Only root on a Debian-based system can install them.
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! { command -v chromium && command -v bwrap; } > /dev/null; then
  echo "Installing chromium and bubblewrap ..."
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium bubblewrap fonts-liberation; } \
    > /dev/null 2>&1 || echo "The installation failed: tests that need them are skipped." >&2
fi
# One worker per core, at most four, each with one thread.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
STATUS=0
"$VENV/bin/python" -m pytest -n logical --maxprocesses 4 --dist worksteal -m "not vllm" "$@" || STATUS=$?
case "$*" in
  "" | --extended) VENV="$VENV" bash run_scripts/test_vllm.sh || STATUS=1 ;;
esac
case " $* " in
  *" --extended "*) VENV="$VENV" bash run_scripts/test_transformers.sh 5.24.0 || STATUS=1 ;;
esac
exit "$STATUS"
