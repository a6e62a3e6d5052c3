#!/bin/bash
# Embed or classify with MPI ranks over several nodes; the pieces are handed out to whichever rank is free.
#
#   sbatch slurm/mpi_stage.sh RUN embed    # then: sbatch slurm/mpi_stage.sh RUN classify
#
# HPCQA_MPI is srun's --mpi for the MPI library that mpi4py uses: pmi2 for PyPI's mpich, cray_shasta for cray-mpich.
# A wrong one gives many worlds of size 1; the ranks notice and stop with a sentence.
#
#SBATCH --job-name=hpcqa-mpi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
run=${1:?usage: sbatch mpi_stage.sh RUN embed|classify}
stage=${2:?usage: sbatch mpi_stage.sh RUN embed|classify}
python=${HPCQA_PYTHON:-python}

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK OMP_WAIT_POLICY=PASSIVE
# MPICH names its shared memory by job and step: a requeued job must not meet what its killed ranks left under step 0.
for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do srun --ntasks=1 --nodes=1 true; done
srun --mpi="${HPCQA_MPI:-pmi2}" --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none --kill-on-bad-exit=1 \
  "$python" -m mpi4py -m hpcqa.launch.job "$run" "$stage"
