#!/bin/bash
# Read a survey into shards with a job array: every task takes every n-th shard, and shards that are there are skipped.
#
#   hpcqa manifest run=RUN ...             # once: lists what there is to read
#   sbatch slurm/shard_array.sh RUN        # e.g. with --array=0-63 --account=mNNNN --constraint=cpu --qos=regular
#
#SBATCH --job-name=hpcqa-shard
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
run=${1:?usage: sbatch shard_array.sh RUN}
python=${HPCQA_PYTHON:-python}

# 120 s before its end Slurm sends USR2 to the ranks: they finish nothing half, and put the job back into the queue.
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK OMP_WAIT_POLICY=PASSIVE
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none \
  "$python" -m hpcqa.launch.job "$run" shard --part "$SLURM_ARRAY_TASK_ID" --parts "$SLURM_ARRAY_TASK_COUNT"
