#!/bin/bash
# Train on several nodes with torchrun: one task a node, which starts one process per GPU (or per HPCQA_PROCESSES).
#
# torchrun passes no signals on: at its time limit the job just ends. Submit it again, and it goes on from its last
# checkpoint; pretrain_srun.sh saves at the limit and requeues itself.
#
#   sbatch slurm/pretrain_torchrun.sh RUN  # e.g. with --nodes=4 --account=mNNNN_g --constraint=gpu --gpus-per-node=4
#
#SBATCH --job-name=hpcqa-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
run=${1:?usage: sbatch pretrain_torchrun.sh RUN}
python=${HPCQA_PYTHON:-python}
processes=${HPCQA_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}

# The first node is where this script runs. The port changes with the job and with every restart, so that a requeued job
# never meets what is left of itself.
port=$((15000 + (SLURM_JOB_ID * 31 + ${SLURM_RESTART_COUNT:-0} * 997) % 15000))
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / processes > 0 ? SLURM_CPUS_PER_TASK / processes : 1))
export OMP_WAIT_POLICY=PASSIVE
export HPCQA_MASTER=${HPCQA_MASTER:-$(hostname)} HPCQA_PORT=$port HPCQA_PROCESSES=$processes
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none --kill-on-bad-exit=1 bash -c '
  exec "$0" -m torch.distributed.run --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" \
    --nproc-per-node "$HPCQA_PROCESSES" --master-addr "$HPCQA_MASTER" --master-port "$HPCQA_PORT" \
    -m hpcqa.launch.job "$1" pretrain' "$python" "$run"
