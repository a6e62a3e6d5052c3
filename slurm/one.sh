#!/bin/bash
# A stage that runs as one process: manifest, calibrate, fit, evaluate, report.
#
#   sbatch slurm/one.sh RUN fit
#
#SBATCH --job-name=hpcqa-one
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --open-mode=append
set -euo pipefail
run=${1:?usage: sbatch one.sh RUN STAGE}
stage=${2:?usage: sbatch one.sh RUN STAGE}

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK OMP_WAIT_POLICY=PASSIVE
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none \
  "${HPCQA_PYTHON:-python}" -m hpcqa.launch.job "$run" "$stage"
