#!/usr/bin/env bash
# From a clean machine to a trained vision-language model: makes a virtual environment, installs this package into it,
# then trains a tiny Qwen2.5-VL on handwritten digits with GRPO or RLOO and writes a report. No GPU is needed, and
# nothing is downloaded but Python packages.
# Usage: bash run_scripts/quickstart.sh [--trainer grpo|rloo] [--seed N] [--output_dir DIR]
#        VENV=dir chooses another place than .venv;  PYTHON=python3.12 another Python to make it with
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
here="$PWD"
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
unset PYTHONPATH # another project's packages must not be found first
export PYTHONNOUSERSITE=1

# Installed already, from these very requirements and this folder?
STAMP="$VENV/.installed-$({ pwd; cat setup.py configs/constraints.txt; } | cksum | cut -d ' ' -f 1)"
if [ ! -f "$STAMP" ]; then
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "quickstart: needs Python 3.10 or newer, $PYTHON is $("$PYTHON" --version 2>&1); set PYTHON=..." >&2
    exit 1
  }
  echo "Installing into $VENV: several GB, some minutes; your own Python stays as it is."
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -c configs/constraints.txt -e .
  touch "$STAMP"
fi
VENV="$(cd "$VENV" && pwd)"
cd "$here"
exec "$VENV/bin/python" -m vlm_grpo.quickstart "$@"
