"""What rounding may cost the bounds of a plain recurrent network, and the exact values they are held against."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from tests.reference import exact_log_singular_values

EPS = np.finfo(np.float64).eps


def jacobians(W, phi):
    return phi[..., :, None] * W


def exact(J):
    """ln σ of every P_t [T, n] by ball arithmetic."""
    return np.array([exact_log_singular_values(J[t:]) for t in range(len(J))])


def allowance(J, *links):
    """Rounding of a sum of T logarithms of norms.

    LAPACK gives a norm to 8nε relative, J = fl(φ' W) moves it by √n ε/2 more, both are absolute in the logarithm;
    every addition and every logarithm costs ε of a partial sum.
    """
    T, n = J.shape[-3], J.shape[-1]
    size = max(float(np.abs(x[np.isfinite(x)]).max(initial=1.0)) for x in links)
    return T * (10 * n + 2 * size) * EPS


def lower_allowance(W, J, *links):
    """Rounding of ln σn(J_s): 8nε times what a relative change of the entries can do to σn.

    That is the condition number of W with its rows scaled to one, for Jacobi; 1e4 where LAPACK was used.
    """
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    assume((norms > 0).all())
    condition = np.linalg.cond(W / norms)
    assume(condition < 1e8)
    return 1e4 * allowance(J, *links) + len(J) * 10 * len(W) * EPS * len(W) * condition
