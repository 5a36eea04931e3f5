"""What a process knows of the Ray job that it is the driver of."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil


def in_job() -> bool:
    """Whether this process is the driver of a Ray job, whose current folder is temporary."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def cluster_of_job() -> str | None:
    """Address of the cluster that this process is a job of; None where it is none, or where no raylet is among its forebears.

    Where several run on a machine, Ray puts the address of the one that `ray start` started last into `RAY_ADDRESS` of a job, whichever it
    was submitted to. In another one the job's files do not exist, and its tasks take somebody else's processors.
    """
    if not in_job():
        return None
    for forebear in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            name, *options = forebear.cmdline() or [""]
            if Path(name).name == "raylet":
                return next((option.partition("=")[2] for option in options if option.startswith("--gcs-address=")), None)
    return None
