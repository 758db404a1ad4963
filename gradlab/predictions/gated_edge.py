"""How far the spectrum of a gated step reaches, from the sizes of its gates."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from gradlab.validation import finite, real_array


def gated_edge(keep: ArrayLike, into: ArrayLike, reads: ArrayLike, gains: ArrayLike) -> float:
    """Return the rightmost point that the eigenvalues of a gated step Jacobian reach.

    J = A + Σ_k B_k W_k C_kᵀ: what every unit keeps, and K random matrices, (W_k)_ij ~ N(0, g_k²/n) independent of each
    other and of the rest, behind and before diagonals. As n → ∞ the eigenvalues fill the region in which the K × K
    matrix M_kl(λ) = (g_l²/n) Σ_i |C_kiᵀ (λ − A_i)^{-1} B_li|² has a spectral radius of at least 1, and A's own
    eigenvalues may stand beyond it. On the real axis ρ(M) falls to the right of them all, so the edge is where it is 1.

    For one matrix and one number kept this is the disc of `gated_disc`, centre + radius; in general units differ. An
    update or forget gate near 1 makes A_i near 1 and B_i small: the spectrum gathers at 1. The other gates set its
    radius.

    Args:
        keep: A, [n], or [n, m, m] where every unit has m numbers of state (an LSTM: h and c); its eigenvalues real.
        into: B, [K, n] or [K, n, m].
        reads: C, of the shape of B.
        gains: g_k ≥ 0 [K].

    Returns:
        The edge, no less than the largest eigenvalue of A. At finite n the largest eigenvalue lies beside it by some
        0.5/√n of its distance from what is kept, as for `gated_disc`; where gates depend on the W_k themselves, as in
        a network that runs, by more.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, negative gains, complex eigenvalues of A.
        TypeError: entries that are not real numbers.

    Source:
        Ahmadian, Fumarola & Miller 2015 for A + B W C; Can, Krishnamurthy & Schwab 2020 for gated networks.

    Example:
        >>> round(gated_edge([0.75, 0.75], [[0.25, 0.25]], [[1.0, 1.0]], [2.0]), 12)    # one disc: 0.75 + 0.25 · 2
        1.25
    """
    A, B, C, g = (
        finite(name, real_array(name, value))
        for name, value in (("keep", keep), ("into", into), ("reads", reads), ("gains", gains))
    )
    if A.ndim == 1:
        A, B, C = A[:, None, None], B[..., None], C[..., None]
    n, m = A.shape[0], A.shape[-1]
    if A.shape != (n, m, m) or not n or B.shape != (len(g), n, m) or C.shape != B.shape or g.ndim != 1 or not len(g):
        raise ValueError(
            "keep, into, reads and gains must be [n], [K, n], [K, n] and [K], or [n, m, m], [K, n, m], [K, n, m] and"
            f" [K], got shapes {np.shape(keep)}, {np.shape(into)}, {np.shape(reads)} and {np.shape(gains)}"
        )
    if (g < 0).any():
        raise ValueError(f"gains must not be negative, got {g.min()}; a gain is the root of n times a variance")
    kept = np.linalg.eigvals(A)
    if np.iscomplexobj(kept) and np.abs(kept.imag).max() > 1e-12 * max(1.0, np.abs(kept).max()):
        raise ValueError(
            "keep must have real eigenvalues, got complex ones; then the edge need not be on the real axis"
        )
    start = float(kept.real.max())

    def excess(distance: float) -> float:
        resolvent = np.linalg.solve((start + distance) * np.eye(m) - A, np.moveaxis(B, 0, -1))  # [n, m, K]
        M = np.einsum("kim,iml->kil", C, resolvent)
        radius = np.abs(np.linalg.eigvals((M**2).sum(axis=1) * g**2 / n)).max()
        return float(np.log(radius)) if radius > 0 else -np.inf

    # ‖C‖ ‖(λ − A)^{-1}‖ ‖B‖ < 1 far out, and ρ(M) grows without limit towards A where a matrix meets it
    far = 1.0 + float(np.abs(A).max())
    while excess(far) > 0:
        far *= 2.0
    near = far
    while excess(near) <= 0:
        near /= 2.0
        if near < 1e-12 * far:
            return start
    return start + float(brentq(excess, near, far, xtol=1e-14, rtol=1e-14))
