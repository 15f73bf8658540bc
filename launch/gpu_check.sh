#!/usr/bin/env bash
# What only a GPU can say of the fused kernels: right on the device, no access out of bounds, how fast.
# Arguments go to the measurement of the global loss, as --rows 65536 --width 768. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "error: no CUDA device, or a torch without CUDA; launch/test.sh checks the kernels without one." >&2; exit 1; }
echo "Fused kernels against float64, on the device"
"$python" -m pytest tests/emocap_kernels/fused -q
if command -v compute-sanitizer >/dev/null; then
  echo "Under compute-sanitizer"
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest tests/emocap_kernels/fused -q -k 'panels or any_width'
  done
else
  echo "compute-sanitizer is not on the PATH (it comes with the CUDA toolkit): not run"
fi
echo "Both losses beside those of others; records go to docs/benchmarks"
"$python" kernels/benchmarks measure --device cuda "$@"
"$python" kernels/benchmarks measure --device cuda --loss region --rows 1024 --patches 49,196 --width 512
"$python" kernels/benchmarks step --device cuda --rows 256
if [ "$("$python" -c 'import torch; print(torch.cuda.device_count())')" -gt 1 ]; then
  "$python" kernels/benchmarks ranks --device cuda --rows 8192 --width 512 --schedule gather,ring
fi
