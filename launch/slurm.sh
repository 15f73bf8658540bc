#!/usr/bin/env bash
# One run under SLURM, a task for each GPU: sbatch launch/slurm.sh my.yaml [key=value ...]
#
# The job queues again by itself: 5 minutes before its time limit, when it is preempted, and, SLURM sees to that, when it
# has lost a node; the run then resumes from its newest checkpoint. `emocap restart` starts the ranks again when one fails
# and the nodes are well. Options of `sbatch` win over those below, as `sbatch --nodes 2-8`: the run takes what it gets.
# EMOCAP names the checkout; by default it is the folder of `sbatch`.
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

# No rank is killed because another has ended: they notice a loss themselves and say whose, and rank 0 has the last word.
emocap restart -- srun --kill-on-bad-exit=0 --wait=0 --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m emocap_pretrain.run "$@" &
ranks=$!
# To `emocap restart`, which has the ranks save; srun would turn a SIGTERM into SIGKILL for them.
trap 'kill -TERM "$ranks"' USR1 TERM
# A trap ends `wait` early: then the ranks still save.
while code=0; wait "$ranks" || code=$?; kill -0 "$ranks" 2>/dev/null; do :; done

if [ "$code" -eq 75 ]; then # saved before the last step
  echo "job $SLURM_JOB_ID queues again"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
