"""Back into the queue: a job that was asked to stop asks Slurm to start it again."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping

logger = logging.getLogger(__name__)

# A stage that never gets anywhere within its time limit must not run forever.
MOST_RESTARTS = 50


def job_to_requeue(environ: Mapping[str, str]) -> str | None:
    """The job or array task of this process, as scontrol names it; None outside Slurm or after too many restarts."""
    if "SLURM_JOB_ID" not in environ or int(environ.get("SLURM_RESTART_COUNT") or 0) >= MOST_RESTARTS:
        return None
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def requeue(environ: Mapping[str, str]) -> bool:
    """Ask Slurm to start this job again; every rank may ask, one is heard.

    Returns:
        Whether the job is back in the queue because of this request.
    """
    job = job_to_requeue(environ)
    if job is None:
        return False
    try:
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("job %s could not be requeued: %s", job, error)
        return False
    logger.info("job %s: %s", job, asked.stderr.strip() or "requeued")
    return asked.returncode == 0
