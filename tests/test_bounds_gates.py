from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradlab.bounds import gate_path
from tests import cases
from tests.reference import formed_products
from tests.rounding import EPS, exact

quick = settings(deadline=None, max_examples=100)
gates = arrays(np.float64, st.sampled_from([(1, 1, 1), (2, 3, 2), (1, 5, 3)]), elements=st.sampled_from(
    [0.0, 1e-200, 1e-3, 0.25, 0.5, 0.9, 1.0]
))  # fmt: skip


@quick
@given(gates)
def test_gate_path_is_the_derivative_of_the_cell_with_its_gates_fixed(f):
    """c ← f∘c + w is linear in c once f and w are given: its Jacobian is the product of diagonals."""
    path = gate_path(f)
    for b in range(len(f)):
        truth = exact(np.stack([np.diag(g) for g in f[b]]))  # sorted, by ball arithmetic
        np.testing.assert_allclose(-np.sort(-path[b], axis=1), truth, rtol=8 * EPS, atol=8 * EPS)
        np.testing.assert_array_equal(gate_path(f[b]), path[b])
    assert (path <= 0).all()


def test_gate_path_is_all_of_an_lstm_without_recurrent_weights_and_not_of_another():
    units = 4
    silent, loud = cases.lstm(units, 6, 0.0, 0), cases.lstm(units, 6, 1.0, 0)
    for J, same in ((silent, True), (loud, False)):
        # ∂c_s/∂c_{s−1} is diag f: h_{s−1} is an output of the step before, through which the full derivative also goes
        f = np.diagonal(J[:, units:, units:], axis1=1, axis2=2)
        full = formed_products(J)[:, units:, units:]
        frozen = np.exp(gate_path(f))
        agreed = np.allclose(full, frozen[:, :, None] * np.eye(units), atol=1e-14)
        assert agreed is same


def test_gate_path_of_masked_steps_and_closed_gates():
    f = np.array([[0.5, 0.0], [0.25, 0.5], [1.0, 0.5]])
    found = gate_path(f, mask=[True, False, True]) / np.log(2)
    assert found.tolist() == [[-1, -np.inf], [0, -1], [0, -1]]
    for bad in (1.0 + 1e-9, -0.1):
        with pytest.raises(ValueError, match=r"gates must lie in \[0, 1\]"):
            gate_path([[bad]])
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        gate_path([0.5, 0.5, 0.5])
