"""Which of several processes of a training this one is, as the environment of whoever started it says.

Needs no Lightning, which comes to the same answer later: the command line has to know before it loads anything heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """0 for the process that prints and writes, and for a training of one process."""
    return next((int(environment[name]) for name in _RANKS if environment.get(name, "").isdigit()), 0)


def started_together(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several processes were started at once from outside, by SLURM's `srun` or by `torchrun`."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment.get("WORLD_SIZE", "1")) > 1
    in_step = environment.get("SLURM_STEP_ID", "").isdigit() and environment.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )
    return in_step and int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))) > 1
