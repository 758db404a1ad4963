"""The sweep over the steps, backwards in time, that carries ∂h_T/∂h_t as a graded factorization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradlab import remainder
from gradlab.graded import GradedFactor, refactor
from gradlab.scales import LN2, ZERO_EXPONENT, Scales, brackets, row_scales
from gradlab.validation import Array


def start_of_sweep(start: Array, sequences: int, *, slices: int = 0) -> GradedFactor:
    """The empty product P_Tᵀ · start of each sequence, for `start` orthogonal [n, n].

    Any `start` leaves the singular values alone, and a random one redraws the rounding. With `slices`
    (`gradlab.remainder`) the sweep makes good its own rounding, at several times the price; without, it keeps count.
    """
    n = len(start)
    d = Scales.of(np.ones((sequences, n)), np.zeros((sequences, n), np.int64))
    eyes = np.repeat(np.eye(n)[None], sequences, axis=0)
    none = np.zeros((sequences, n))
    return GradedFactor(
        Ct=np.repeat(start.T[None], sequences, axis=0),
        d=d,
        Y=eyes,
        singular=np.zeros(sequences, bool),
        rest=np.zeros_like(eyes),
        error=none,
        pending=none,
        slices=slices,
    )


def sweep(carried: GradedFactor, J: Array, wanted: Sequence[int]) -> tuple[GradedFactor, GradedFactor | None, Array]:
    """Carry P_tᵀ = J_{t+1}ᵀ ··· J_Tᵀ · start backwards through a chunk of steps, for a batch of sequences.

    Fed with J_sᵀ as it stands the sweep would lose accuracy where units saturate: the grading of diag(φ')·W would
    sit on the wrong side of each factor. So each Jacobian is split by its row sizes, J_s = D_s Ĵ_s, and the
    product regrouped, every bracket graded by rows:

        P_tᵀ = Ĵ_{t+1}ᵀ · [D_{t+1} Ĵ_{t+2}ᵀ] ··· [D_{T−1} Ĵ_Tᵀ] · [D_T · start]

    Args:
        carried: C · diag(d) · Y = P_tᵀ · start at the end of the chunk, rows in their own order.
        J: the chunk [B, K, n, n].
        wanted: which of its K steps to hand out, ascending.

    Returns:
        (the product carried to the start of the chunk, C · diag(d) · Y = P_tᵀ · start before each wanted step,
        stacked to [len(wanted)·B, n, n] with time as the slower axis; None if none is wanted;
        ln|det J_s| [B, K]).
    """
    unit, D, shift = row_scales(J)
    underflow = ((unit == 0) != (J == 0)).any(axis=(2, 3))  # a row that spans more than float64
    diagonals = brackets(D)
    each = np.arange(len(J))[:, None]
    emitted = []
    asked = set(wanted)
    for s in range(J.shape[1] - 1, -1, -1):
        for i, bracket in enumerate(diagonals):
            if i:
                carried = _in_order(carried)
            scale = bracket[:, s].swapaxes(1, 2)
            carried = refactor(carried._replace(Ct=scale * carried.Ct, rest=scale * carried.rest), keep_left=True)
        d = carried.d
        d = Scales(d.mantissa, np.where(d.mantissa == 0, ZERO_EXPONENT, d.exponent + shift[:, s, None]))
        step = unit[:, s][each, carried.rows]
        if carried.slices:
            Ct, rest = remainder.product(carried.Ct, carried.rest, step, carried.slices)
        else:
            Ct, rest = carried.Ct @ step, carried.rest @ step
        carried = carried._replace(Ct=Ct, d=d, rest=rest, rows=None, singular=carried.singular | underflow[:, s])
        if s in asked:
            whole = _in_order(refactor(carried, keep_left=True)) if carried.slices else carried
            emitted.append(whole._replace(rest=whole.rest[:0]))
    # the determinants of the steps, by an LU of their own, so that they can tell on the sweep
    ln_det = np.asarray(np.linalg.slogdet(unit)[1]) + LN2 * (D.sum(axis=-1) + J.shape[-1] * shift)
    return carried, _stack(emitted[::-1]) if emitted else None, ln_det


def _in_order(F: GradedFactor) -> GradedFactor:
    """The same with the rows of C in their own order."""
    Ct, rest = np.empty_like(F.Ct), np.empty_like(F.rest)
    each = np.arange(len(Ct))[:, None]
    Ct.swapaxes(1, 2)[each, F.rows] = F.Ct.swapaxes(1, 2)
    rest.swapaxes(1, 2)[each, F.rows] = F.rest.swapaxes(1, 2)
    return F._replace(Ct=Ct, rest=rest, rows=None)


def _stack(factors: list[GradedFactor]) -> GradedFactor:
    """One batch of several."""
    d = Scales(*(np.concatenate(part) for part in zip(*(F.d for F in factors), strict=True)))
    return GradedFactor(
        Ct=np.concatenate([F.Ct for F in factors]),
        d=d,
        Y=np.concatenate([F.Y for F in factors]),
        singular=np.concatenate([F.singular for F in factors]),
        rest=factors[0].rest[:0],  # of no use for reading out
        error=np.concatenate([F.error for F in factors]),
        pending=np.concatenate([F.pending for F in factors]),
    )
