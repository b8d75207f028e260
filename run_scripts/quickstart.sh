#!/usr/bin/env bash
# Install this package into a virtual environment, train a tiny Qwen2.5-VL on handwritten digits with GRPO or RLOO, and
# write a report. No GPU is needed; nothing but Python packages is downloaded.
# Usage: bash run_scripts/quickstart.sh [--trainer grpo|rloo] [--seed N] [--output_dir DIR]
# Environment: VENV is the folder of the virtual environment (default .venv),
#              PYTHON the interpreter that creates it (default python3)
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
here="$PWD"
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
unset PYTHONPATH # packages of other projects must not shadow the installed ones
export PYTHONNOUSERSITE=1

# The stamp exists if these exact requirements were installed from this folder.
STAMP="$VENV/.installed-$({ pwd; cat setup.py configs/constraints.txt; } | cksum | cut -d ' ' -f 1)"
if [ ! -f "$STAMP" ]; then
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "quickstart: needs Python 3.11 or newer, $PYTHON is $("$PYTHON" --version 2>&1); set PYTHON=..." >&2
    exit 1
  }
  echo "Installing into $VENV: several GB, a few minutes; the system's Python is not changed."
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -c configs/constraints.txt -e .
  touch "$STAMP"
fi
VENV="$(cd "$VENV" && pwd)"
cd "$here"
exec "$VENV/bin/python" -m vlm_grpo.quickstart "$@"
