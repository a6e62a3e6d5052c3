#!/bin/bash
# The whole flow as jobs that wait for each other, for a run folder that has a run.yaml. Not a batch script: run it.
#
#   hpcqa manifest run=RUN survey.tables=[...] survey.labels=[...]
#   slurm/campaign.sh RUN [options of sbatch for every job, e.g. --account=mNNNN --qos=regular --constraint=cpu]
#
# A failed stage holds the rest: squeue shows DependencyNeverSatisfied. Cancel these (scancel), mend the reason, and run
# it again: what is done is skipped within seconds. `hpcqa run launch=slurm` submits only what is missing.
set -euo pipefail
run=${1:?usage: campaign.sh RUN [options of sbatch]}
shift
here=$(cd "$(dirname "$0")" && pwd)
logs=$(cd "$run" && pwd)/logs
mkdir -p "$logs"

after=""
submit() { # submit SCRIPT ARGUMENTS...: waits for the job before it
  job=$(sbatch --parsable --output="$logs/%x-%A.out" ${after:+--dependency=afterok:$after} "${options[@]}" "$@")
  after=${job%%;*}
  echo "$(basename "$1" .sh) ${*:3}: job $after"
}
options=("$@")
submit "$here/shard_array.sh" "$run"
submit "$here/one.sh" "$run" calibrate
submit "$here/pretrain_srun.sh" "$run"
submit "$here/mpi_stage.sh" "$run" embed
submit "$here/one.sh" "$run" fit
submit "$here/mpi_stage.sh" "$run" classify
submit "$here/one.sh" "$run" evaluate
submit "$here/one.sh" "$run" report
