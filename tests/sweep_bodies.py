"""What stands in for a run in tests of sweeps: importable by workers, quick, and without TensorFlow."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import xarray as xr

import gradlab as gl

GATE = "GRADLAB_TEST_GATE"  # a folder through which a test and its workers speak


def configs(count: int, **changes: object) -> list[gl.Experiment]:
    return [gl.Experiment("tanh", seed=seed, data="noise", epochs=0, **changes) for seed in range(count)]


def drawn(experiment: gl.Experiment) -> xr.Dataset:
    """Some numbers that depend on the description alone."""
    values = np.random.default_rng(experiment.seed).standard_normal((2, experiment.units))
    return xr.Dataset({"rate": (("batch", "mode"), values * experiment.gain)}, {"mode": np.arange(experiment.units)})


def slowly(experiment: gl.Experiment) -> xr.Dataset:
    time.sleep(0.05)
    return drawn(experiment)


def announced(experiment: gl.Experiment) -> xr.Dataset:
    """Tell the test which process is at which run, and take so long that it can be killed."""
    gate = Path(os.environ[GATE])
    (gate / f"{experiment.seed}.{os.getpid()}").touch()
    time.sleep(0.3 if experiment.seed < 8 else 0.02)
    return drawn(experiment)


def failing(experiment: gl.Experiment) -> xr.Dataset:
    if experiment.seed % 3 == 1:
        raise ArithmeticError(f"no result for seed {experiment.seed}")
    return drawn(experiment)


def deadly(experiment: gl.Experiment) -> xr.Dataset:
    """Kill the process at one of the runs, whoever makes it."""
    if experiment.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn(experiment)


_leaked: list[np.ndarray] = []


def leaking(experiment: gl.Experiment) -> xr.Dataset:
    """Keep 16 MiB, and say which process does, and how much it keeps by now."""
    _leaked.append(np.ones(2**21))
    return drawn(experiment).assign_attrs(process=os.getpid(), leaked=len(_leaked))
