#!/usr/bin/env bash
# Everything that only a GPU can show, in nine minutes and in the order of its importance. Needs no network.
#
#   bash benchmarks/gpu_wheels.sh wheels                                  where there is a network
#   bash benchmarks/gpu.sh --wheels wheels --output results               on the machine with the GPU
#   python benchmarks/step_report.py --gpu results                        what was measured, into docs/performance.md
#   bash benchmarks/gpu.sh --rehearse --output results                    the same stages on a CPU, at tiny size
#
# PYTHON names the interpreter (default python3); without --wheels its own packages are taken. Every stage has a limit of
# its own and writes what it has as it goes: a run that is cut off keeps it. --seconds N (default 530) bounds all of them, --stages NAME ... leaves the others out.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
wheels="" words=()
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels="${2:?--wheels needs a folder}"; shift 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
if [ -n "$wheels" ]; then
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --root-user-action ignore --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$PYTHON" benchmarks/gpu_stages.py --began "$SECONDS" ${words[@]+"${words[@]}"}
