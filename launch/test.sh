#!/usr/bin/env bash
# The whole test suite; makes the environment if needed. Arguments go to pytest instead of the whole suite.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

make_environment
if [ $# -gt 0 ]; then exec .venv/bin/python -m pytest "$@"; fi
echo "Unit tests"
.venv/bin/python -m pytest -m 'not slow' -n "$(nproc)" -q
echo "Fused kernels in Triton's interpreter"
TRITON_INTERPRET=1 .venv/bin/python -m pytest tests/emocap_kernels/fused -n "$(nproc)" -q
echo "End-to-end tests: real launchers, processes that are killed"
exec .venv/bin/python -m pytest -m 'slow and not drill' -q
