"""The network of a description itself: that of `run`, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import gradlab as gl

SMALL = {"units": 3, "epochs": 2, "samples": 60, "batch_size": 20, "probes": 4, "held_out": 2}


@pytest.mark.parametrize(
    ("cell", "given"),
    [
        ("linear", {"data": "latching", "length": 12}),
        ("tanh", {"data": "latching", "length": 12, "omega": 2.0}),
        ("gru", {"data": "addition", "length": 12}),  # masked, a regression
        ("lstm", {"data": "copy", "length": 5}),  # an answer at every step
    ],
)
def test_it_is_the_network_of_run(cell: str, given: dict) -> None:
    experiment = gl.Experiment(cell, **SMALL | given, measured=["decay"])
    ds = gl.run(experiment)
    network = gl.trained(experiment.as_dict())
    task, part = network.task, slice(0, 4)
    mask = None if task.test_mask is None else task.test_mask[part]
    traj = gl.rollout(network.layer, task.test_inputs[part], mask=mask)
    g = gl.state_gradients(traj, None, network.loss(task.test_targets[part]))
    np.testing.assert_array_equal(g.log_total_norm, ds["log_gradient_norm"].sel(stage="trained"))
    np.testing.assert_array_equal(network.curves["test_loss"], ds["test_loss"])
    assert network.experiment == experiment
    features = task.test_inputs.astype("f4")
    x = features if mask is None else [features, task.test_mask]
    loss = network.model.evaluate(x, task.test_targets, verbose=0)
    assert loss[0] == network.curves["test_loss"][-1]


def test_a_later_training_leaves_it_alone() -> None:
    experiment = gl.Experiment("tanh", **SMALL, data="latching", length=12)
    first = gl.trained(experiment)
    weights = [one.copy() for one in first.layer.get_weights()]
    other = gl.trained(gl.Experiment("tanh", **SMALL | {"epochs": 0}, data="latching", length=12, seed=1))
    gl.run(gl.Experiment("tanh", **SMALL, data="latching", length=12, seed=2))
    assert not other.curves
    assert not np.array_equal(other.layer.get_weights()[1], weights[1])
    for now, then in zip(first.layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    assert first.readout in first.model.layers
    assert first.layer in first.model.layers


def test_a_wrong_description_is_named() -> None:
    with pytest.raises(ValueError, match="unknown key 'epoch'"):
        gl.trained({"cell": "tanh", "epoch": 3})


HASH = """
import warnings
import tensorflow as tf
import gradlab as gl
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    large = dict(data="copy", length=10, units=128, batch_size=500, samples=1000, epochs=2)
    ds = gl.run(gl.Experiment("tanh", **large, measured=["decay"]))  # small sums are taken by one thread in any case
print(ds.attrs["content_hash"], any("set TF_NUM_INTRAOP_THREADS=1" in str(one.message) for one in caught))
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="TensorFlow has one thread anyway")
def test_a_run_in_this_process_has_the_numbers_of_a_worker() -> None:
    """A worker has one thread; TensorFlow by itself one for each processor, and with them another order of sums."""

    def said(before: str, **environment: str) -> list[str]:
        rest = {name: value for name, value in os.environ.items() if not name.startswith("TF_NUM_")}
        command = [sys.executable, "-c", HASH.format(before=before)]
        done = subprocess.run(command, env=rest | environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    worker, _ = said("", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    assert said("") == [worker, "False"]
    assert said("tf.zeros(())")[1] == "True"  # too late: TensorFlow has started
