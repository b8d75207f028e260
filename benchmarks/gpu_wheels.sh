#!/usr/bin/env bash
# Downloads the wheels that benchmarks/gpu.sh installs on a machine without a network: Linux, x86-64, Python 3.12.
# Usage: bash benchmarks/gpu_wheels.sh DIR
set -euo pipefail
[ $# = 1 ] || { echo "usage: bash benchmarks/gpu_wheels.sh DIR" >&2; exit 2; }
here="$(cd "$(dirname "$0")" && pwd)"
platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${platform}_x86_64")
done
mkdir -p "$1"
rm -f "$1"/*.whl
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
  "${platforms[@]}" -c "$here/../configs/constraints.txt" -r "$here/gpu_wheels.txt" -d "$1"
du -ch "$1"/*.whl | tail -n 1
