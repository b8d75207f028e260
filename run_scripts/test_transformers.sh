#!/usr/bin/env bash
# Runs the trainers' tests with another version of transformers than configs/constraints.txt names.
# Usage: bash run_scripts/test_transformers.sh 5.24.0 [pytest arguments]
# VENV=dir: where run_scripts/test.sh has installed everything else (default .venv-test); only transformers, and what it
# asks for in another version, is installed beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION="${1:?which version of transformers? e.g. run_scripts/test_transformers.sh 5.24.0}"
shift
BASE="$(realpath "${VENV:-.venv-test}")"
OTHER=".venv-transformers-$VERSION"
if [ ! -x "$BASE/bin/python" ]; then
  echo "$BASE: no virtual environment there; run run_scripts/test.sh first, it makes one" >&2
  exit 1
fi
if [ ! -f "$OTHER/.installed" ]; then
  "$BASE/bin/python" -m venv "$OTHER"
  SITE='import sysconfig; print(sysconfig.get_paths()["purelib"])'
  echo "import site; site.addsitedir('$("$BASE/bin/python" -c "$SITE")')" > "$("$OTHER/bin/python" -c "$SITE")/base.pth"
  "$OTHER/bin/python" -m pip install --quiet "transformers==$VERSION"
  touch "$OTHER/.installed"
fi
"$OTHER/bin/python" -c "import transformers as t; assert t.__version__ == '$VERSION', t.__version__; print('transformers', t.__version__)"
if [ $# -eq 0 ]; then
  set -- tests/trainers tests/evaluation/test_hf_backend.py tests/evaluation/test_sampling_params.py
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONPATH="$PWD/src"
exec "$OTHER/bin/python" -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
