from __future__ import annotations

import logging
import os

import pytest
from hypothesis import HealthCheck, settings

# before anything imports TensorFlow or matplotlib; small matrices are slower on several threads than on one
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # many small cells on purpose: no advice on retracing

settings.register_profile(
    "gradlab",
    deadline=None,  # the first example of a kind traces a graph
    print_blob=True,
    max_examples=25,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("gradlab")


def pytest_configure(config):
    # Keras's variables do not take NumPy 2's `copy` keyword; nothing here can change that
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")
    # most sequences here are short on purpose; tests/test_convergence.py has what says so
    config.addinivalue_line("filterwarnings", "ignore:(decay rate|Lyapunov exponents) too short:RuntimeWarning")


@pytest.fixture(scope="module")
def vanilla():
    """A synthetic dataset of a simple network."""
    import synthetic

    return synthetic.dataset()


@pytest.fixture
def close_figures():
    """Close what a test has drawn."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")
