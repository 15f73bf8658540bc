#!/usr/bin/env bash
# Trains one run under SLURM, with one task for each GPU: sbatch launch/slurm.sh my.yaml [key=value ...]
#
# The job requeues itself 5 minutes before its time limit, and when it is preempted. SLURM requeues the job when it has
# lost a node. The run then resumes from its newest checkpoint. If a rank fails on a healthy node, `emocap restart`
# starts the ranks again. Options of `sbatch` override the ones below: with `sbatch --nodes 2-8` the run uses as many
# nodes as it gets. The variable EMOCAP names the checkout; by default it is the folder in which `sbatch` was called.
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
# 300 s before the time limit SLURM sends USR1 to this script alone, so that the ranks can end a step and save.
#SBATCH --signal=B:USR1@300
set -euo pipefail

cd "${EMOCAP:-${SLURM_SUBMIT_DIR:?start it by sbatch}}"
export PATH="$PWD/.venv/bin:$PATH"
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker}"

# The signal goes to `emocap restart`, which asks the ranks to save. srun would follow a SIGTERM with SIGKILL. The trap is
# set before the start, because a signal between the start and a later trap would end the job without a requeue.
trap 'kill -TERM "${!:?the ranks had not started}"' USR1 TERM
# srun must not kill ranks when another one has ended: they detect the loss themselves, and rank 0 reports it.
emocap restart -- srun --kill-on-bad-exit=0 --wait=0 --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m emocap_pretrain.run "$@" &
ranks=$!
# A trapped signal ends `wait` early, while the ranks still save, so this waits until they have ended.
while code=0; wait "$ranks" || code=$?; kill -0 "$ranks" 2>/dev/null; do :; done

if [ "$code" -eq 75 ]; then # The run was saved before its last step.
  echo "job $SLURM_JOB_ID queues again"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
