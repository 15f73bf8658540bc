#!/usr/bin/env bash
# Runs the tests. The environment is created if needed.
#
#   launch/test.sh           everything, in three stages
#   launch/test.sh fast      unit tests that start no other process, in a few minutes
#   launch/test.sh ARGS      pytest with these arguments
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

make_environment

stage() {
    local name=$1 began=$SECONDS
    shift
    echo "$name: pytest $*"
    .venv/bin/python -m pytest "$@"
    echo "$name took $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
}

case "${1-}" in
"")
    stage "Unit tests" -m 'not slow' -n "$(nproc)" -q
    TRITON_INTERPRET=1 stage "Fused kernels in Triton's interpreter" tests/emocap_kernels/fused -n "$(nproc)" -q
    # Tests of one file share what they start, so they run in one process.
    stage "End-to-end tests with real launchers and killed processes" -m 'slow and not drill' -n "$(nproc)" --dist loadfile -q
    ;;
fast) stage "Fast unit tests" -m 'not slow and not costly' -n "$(nproc)" -q ;;
*) exec .venv/bin/python -m pytest "$@" ;;
esac
