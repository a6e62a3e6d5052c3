#!/bin/bash
# Train on several nodes, one task per GPU, started by srun. A requeued job goes on from its last checkpoint.
#
#   sbatch slurm/pretrain_srun.sh RUN      # e.g. with --nodes=4 --account=mNNNN_g --constraint=gpu --gpus-per-node=4
#
#SBATCH --job-name=hpcqa-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
run=${1:?usage: sbatch pretrain_srun.sh RUN}
python=${HPCQA_PYTHON:-python}

# The ranks find each other by the step's own variables: no address or port has to be set here.
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK OMP_WAIT_POLICY=PASSIVE
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none --kill-on-bad-exit=1 \
  "$python" -m hpcqa.launch.job "$run" pretrain
