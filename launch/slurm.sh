#!/usr/bin/env bash
# One run under SLURM, a task for each GPU: sbatch launch/slurm.sh my.yaml [key=value ...]
#
# What a job loses is done again from the newest checkpoint, by the same job: after its time limit and after a
# preemption the script asks for a requeue, after the loss of a node SLURM does. `emocap restart` starts the ranks again
# when one of them fails and the nodes are well. Options after `sbatch` win over those below, as `sbatch --nodes 2-8`:
# the run takes what it gets. EMOCAP names the checkout; by default it is the folder of `sbatch`.
#SBATCH --job-name=emocap
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# To this script alone, so long before the limit: time to end a step and to save.
#SBATCH --signal=B:USR1@300
set -euo pipefail

cd "${EMOCAP:-${SLURM_SUBMIT_DIR:?start it by sbatch}}"
export PATH="$PWD/.venv/bin:$PATH"
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker}"

# Srun turns a SIGTERM of its own into SIGKILL for its tasks; sent by scancel it reaches the tasks, which then save.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM

emocap restart -- srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m emocap_pretrain.run "$@" &
ranks=$!
# A trap ends `wait` early, with 128 + its signal: then the ranks still save.
while code=0; wait "$ranks" || code=$?; [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; do :; done

# Ranks that saved because they were told to end well, too: only the run's report tells that there is no more to do.
finished() {
  python - "$@" <<'PYTHON'
import sys
from emocap_pretrain.config.load import load
from emocap_pretrain.run_folder import RunFolder
from emocap_shards.store import open_store

config = load(sys.argv[1], sys.argv[2:])
sys.exit(RunFolder(open_store(config.url)).report(config.steps) is None)
PYTHON
}
if [ "$code" -eq 0 ] && ! finished "$@"; then
  echo "saved before the end; job $SLURM_JOB_ID queues again"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
