#!/bin/bash
# SAGA on one machine or several:
#   sbatch --nodes=1 examples/slurm.sh imagenet/mocov2_plus runs/mocov2_plus data.train=... data.val=...
# The arguments are a config (a shipped name or a file), a run folder, and overrides of the config. saga-fast's environment
# is active; run folder and images are on a file system that all machines share.
#SBATCH --job-name=saga-fast
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
set -euo pipefail

config=$1 out=$2
shift 2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One torchrun per machine, one process per GPU; decoding threads per process are the cores over the GPUs. --resume
# continues from last.pt and starts afresh if there is none, so that a restart, a requeued job and a new job are alike.
srun torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$((29500 + SLURM_JOB_ID % 1000))" --rdzv-id="$SLURM_JOB_ID" \
    -m saga_fast train --config "$config" --out "$out" --resume \
    --set data.threads=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE)) checkpoint.every_steps=500 "$@" &
step=$!

# 180 s before the time limit Slurm signals this shell. srun hands SIGTERM on to torchrun, training finishes its step,
# writes last.pt and ends, and the job is queued again. Slurm itself sends SIGTERM to the step, and requeues the job,
# when it preempts: this shell then only waits.
requeue=false
trap 'requeue=true; kill -TERM "$step"' USR1
trap : TERM

code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a signal interrupted wait
    code=0
    wait "$step" || code=$?
done
if "$requeue" && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
