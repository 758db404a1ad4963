"""gradlab: how gradients travel through time in recurrent networks, and why.

cell + inputs → trajectory → step Jacobians → spectra of their products → bounds, predictions, decay → a labelled
dataset → figure, table, citation. Names are imported when they are first used, so that the numerical core, `load` and
`plot` work without TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name → the module that holds it; a module stands for itself
_HOME = {
    # from a cell to arrays
    "VanillaRNNCell": "cells",
    "as_step": "step",
    "rollout": "trajectory",
    "Trajectory": "trajectory",
    "step_jacobians": "jacobian",
    "LazyStepJacobians": "lazy",
    "activation_slopes": "jacobian",
    "state_gradients": "gradients",
    "gate_paths": "paths",
    # linear algebra
    "log_singular_values": "products",
    "leading_singular_values": "leading",
    "lyapunov_exponents": "lyapunov",
    "reliability_horizon": "horizon",
    "kaplan_yorke_dimension": "attractor",
    "entropy_rate": "attractor",
    "recurrent_spectrum": "spectrum",
    "spectral_radius": "spectrum",
    "gate_spectra": "gates",
    # theory beside measurement
    "bounds": "bounds",
    "predictions": "predictions",
    "fit_decay": "decay",
    "decay_budget": "decay",
    # how far a number would move, and whether the run was long enough for it
    "interval": "comparison",
    "compare": "comparison",
    "check_convergence": "convergence",
    # a model in training
    "GradientTracker": "tracking",
    "tracked": "tracking_dataset",
    "schedules": "schedules",
    "layer_gradients": "probe",
    "gradient_left_out": "output_gradients",
    "credit_by_lag": "credit",
    "clipping_audit": "clipping_effects",
    "fixes": "fixes",
    # put together
    "analyze": "analysis",
    "Experiment": "experiment",
    "run": "runs",
    "trained": "training",
    "read_experiments": "descriptions",
    "sweep": "sweeps",
    "Store": "store",
    "StoreError": "store",
    "open_store": "collection",
    "tasks": "tasks",
    "testing": "testing",
    "plot": "plotting",
    "save": "results",
    "load": "results",
    "cite": "citation",
}

_MODULES = ("bounds", "predictions", "tasks", "testing", "plot", "schedules", "fixes")  # stand for themselves

if TYPE_CHECKING:
    from gradlab import bounds, fixes, predictions, schedules, tasks, testing
    from gradlab import plotting as plot
    from gradlab.analysis import analyze
    from gradlab.attractor import entropy_rate, kaplan_yorke_dimension
    from gradlab.cells import VanillaRNNCell
    from gradlab.citation import cite
    from gradlab.clipping_effects import clipping_audit
    from gradlab.collection import open_store
    from gradlab.comparison import compare, interval
    from gradlab.convergence import check_convergence
    from gradlab.credit import credit_by_lag
    from gradlab.decay import decay_budget, fit_decay
    from gradlab.descriptions import read_experiments
    from gradlab.experiment import Experiment
    from gradlab.gates import gate_spectra
    from gradlab.gradients import state_gradients
    from gradlab.horizon import reliability_horizon
    from gradlab.jacobian import activation_slopes, step_jacobians
    from gradlab.lazy import LazyStepJacobians
    from gradlab.leading import leading_singular_values
    from gradlab.lyapunov import lyapunov_exponents
    from gradlab.output_gradients import gradient_left_out
    from gradlab.paths import gate_paths
    from gradlab.probe import layer_gradients
    from gradlab.products import log_singular_values
    from gradlab.results import load, save
    from gradlab.runs import run
    from gradlab.spectrum import recurrent_spectrum, spectral_radius
    from gradlab.step import as_step
    from gradlab.store import Store, StoreError
    from gradlab.sweeps import sweep
    from gradlab.tracking import GradientTracker
    from gradlab.tracking_dataset import tracked
    from gradlab.training import trained
    from gradlab.trajectory import Trajectory, rollout

__all__ = [
    "Experiment",
    "GradientTracker",
    "LazyStepJacobians",
    "Store",
    "StoreError",
    "Trajectory",
    "VanillaRNNCell",
    "activation_slopes",
    "analyze",
    "as_step",
    "bounds",
    "check_convergence",
    "cite",
    "clipping_audit",
    "compare",
    "credit_by_lag",
    "decay_budget",
    "entropy_rate",
    "fit_decay",
    "fixes",
    "gate_paths",
    "gate_spectra",
    "gradient_left_out",
    "interval",
    "kaplan_yorke_dimension",
    "layer_gradients",
    "leading_singular_values",
    "load",
    "log_singular_values",
    "lyapunov_exponents",
    "open_store",
    "plot",
    "predictions",
    "read_experiments",
    "recurrent_spectrum",
    "reliability_horizon",
    "rollout",
    "run",
    "save",
    "schedules",
    "spectral_radius",
    "state_gradients",
    "step_jacobians",
    "sweep",
    "tasks",
    "testing",
    "tracked",
    "trained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"gradlab has no {name!r}; it has {sorted(_HOME)}")
    module = import_module(f"gradlab.{_HOME[name]}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
