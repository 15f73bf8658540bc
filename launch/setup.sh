# Creates .venv from requirements.lock, unless it is up to date. Other scripts source this file from the root of the
# repository. The variable PYTHON names another interpreter.

fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

# Shows in one line how many packages pip has collected. The log of pip is kept, for the case of a failure.
install() {
  local total=$1 log=.venv/install.log; shift
  .venv/bin/pip install --disable-pip-version-check --no-input "$@" >"$log" 2>&1 &
  local pid=$! seen=0
  while kill -0 "$pid" 2>/dev/null; do
    seen=$(grep -c '^Collecting' "$log" || true)
    if [ -t 1 ]; then printf '\r  %d of %d packages ' "$seen" "$total"; fi
    sleep 1
  done
  if [ -t 1 ]; then printf '\r\033[K'; fi
  wait "$pid" || fail "pip could not install ($(grep -m1 '^ERROR' "$log" || tail -n1 "$log")): read $PWD/$log, then run the command again."
}

find_python() {
  local name
  for name in ${PYTHON:-python3.11 python3.12 python3}; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
      echo "$name"; return
    fi
  done
  fail "Python 3.11 or 3.12 is needed: install it (Debian: apt-get install python3.11 python3.11-venv) or set PYTHON=/path/to/python3.11."
}

make_environment() {
  local wanted python free_kib
  # The environment is up to date if it was made from the same two files. The mark is written last, after each step has
  # succeeded, so an interrupted installation is repeated.
  wanted=$(cat requirements.lock pyproject.toml | cksum)
  if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then return; fi
  python=$(find_python) || exit 1
  free_kib=$(df -Pk . | awk 'NR==2 {print $4}')
  [ "$free_kib" -gt 6000000 ] || fail "the environment needs 6 GB of disk and $PWD has $((free_kib / 1000000)) GB free."
  echo "Making the environment in .venv (once, about 4 minutes)"
  [ -x .venv/bin/pip ] || "$python" -m venv .venv ||
    fail "$python has no venv module: install it (Debian: apt-get install python3-venv)."
  install 10 "$(grep '^torch==' requirements.lock)"
  # requirements.lock names every package with its version, so pip has no dependencies to resolve.
  install "$(grep -c '==' requirements.lock)" --no-deps -r requirements.lock
  if command -v nvidia-smi >/dev/null; then install 1 --no-deps 'xformers==0.0.35'; fi
  install 1 --no-deps -e .
  # Python executes this line at each start, so that timm, open_clip and transformers can be imported beside a CPU build
  # of torch (decision 5). It comes after hatch's _emocap_pretrain.pth in the order of names, which Python follows.
  printf 'import emocap_torchvision; emocap_torchvision.install()\n' \
    >"$(echo .venv/lib/python3.*/site-packages)/emocap_torchvision.pth"
  echo "$wanted" >.venv/installed
}
