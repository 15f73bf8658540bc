#!/usr/bin/env bash
# Injects faults into three simulated hosts on this machine: power cuts, broken connections, killed servers
# (docs/drills.md). It needs root, and about half an hour on 2 cores. All arguments are passed to pytest:
# `launch/drills.sh -k tracker` runs some of the drills.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

[ "$(id -u)" = 0 ] || fail "the drills create network and process namespaces: run them as root."
packages=()
command -v ip >/dev/null || packages+=(iproute2)
[ -x /usr/sbin/sshd ] || packages+=(openssh-server)
command -v ssh >/dev/null || packages+=(openssh-client)
command -v pdsh >/dev/null || packages+=(pdsh)
if [ ${#packages[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || fail "${packages[*]} missing, and there is no apt-get: install these packages with your package manager."
  echo "Installing ${packages[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null ||
    fail "apt-get could not install ${packages[*]}."
fi
make_environment
exec .venv/bin/python -m pytest tests/drills -v --durations=0 --durations-min=1 "$@"
