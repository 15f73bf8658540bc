#!/usr/bin/env bash
# Runs the tests. The environment is created if needed.
#
#   launch/test.sh           all tests except the drills (launch/drills.sh), in three stages
#   launch/test.sh fast      unit tests that start no other process, in about a minute
#   launch/test.sh ARGS      pytest with these arguments
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

make_environment
# Tests also wait, for servers and for processes that they start, so more processes than cores keep the cores busy. Those
# that start launchers have many processes of their own.
workers=$(($(nproc) * 2)) launching=$(($(nproc) + 1))

stage() {
    local name=$1 began=$SECONDS
    shift
    echo "$name: pytest $*"
    .venv/bin/python -m pytest "$@"
    echo "$name took $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
}

case "${1-}" in
"")
    # Tests of one file share what they start, so they run in one process.
    stage "Unit tests" -m 'not slow' -n "$workers" --dist loadfile --no-loadscope-reorder -q
    TRITON_INTERPRET=1 stage "Fused kernels in Triton's interpreter" tests/emocap_kernels/fused -n "$workers" -q
    # Only the files that have such tests are collected, because every process of pytest collects for itself.
    # shellcheck disable=SC2046 # no file has a space in its name
    stage "End-to-end tests with real launchers and killed processes" -m 'slow and not drill' -n "$launching" --dist loadfile --no-loadscope-reorder -q \
        $(grep -rlE 'mark\.(slow|drill)' tests --include='test_*.py' | LC_ALL=C sort)
    ;;
fast) stage "Fast unit tests" -m 'not slow and not costly' -n "$workers" -q ;;
*) exec .venv/bin/python -m pytest "$@" ;;
esac
