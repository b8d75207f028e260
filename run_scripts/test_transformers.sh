#!/usr/bin/env bash
# Run the trainers' tests with another version of transformers than the one in configs/constraints.txt.
# Usage: bash run_scripts/test_transformers.sh 5.24.0 [pytest arguments]
# Environment: VENV is the virtual environment of run_scripts/test.sh (default .venv-test). It is not changed: the other
# transformers, and dependencies that it needs in other versions, are installed into a second environment on top of it.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION="${1:?version of transformers missing, e.g. run_scripts/test_transformers.sh 5.24.0}"
shift
BASE="$(realpath "${VENV:-.venv-test}")"
OTHER=".venv-transformers-$VERSION"
if [ ! -x "$BASE/bin/python" ]; then
  echo "$BASE: not a virtual environment; create it with run_scripts/test.sh first" >&2
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
