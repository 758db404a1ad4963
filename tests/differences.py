"""Central differences with an error bound of their own: the oracle for every derivative."""

from __future__ import annotations

import numpy as np

SPACING = 2.0**-8


def richardson(function, points, rounding):
    """Return (the Jacobian of `function` at each point [N, m, n], a bound on its error [N, 1, 1]).

    Central differences D(h), D(h/2), D(h/4) are extrapolated to R(h) = (4 D(h/2) − D(h)) / 3, which errs by O(h⁴). The
    error of R(h/2) is a sixteenth of that of R(h), so their difference bounds it with much room; the largest over a
    point's entries is taken, as a single entry may agree by chance. `rounding` in the function's values becomes at
    most (4/3 + 1/6)·rounding/(h/4) in the result.

    Args:
        function: maps [M, n] to [M, m], row by row.
        points: [N, n].
        rounding: bound on the absolute rounding error of a value of `function`.
    """
    N, n = points.shape
    shifts = [sign * SPACING / 2**k for k in range(3) for sign in (1.0, -1.0)]
    shifted = points[:, None, None, :] + np.array(shifts)[None, :, None, None] * np.eye(n)  # [N, 6, n, n]
    values = np.asarray(function(shifted.reshape(-1, n))).reshape(N, 3, 2, n, -1)
    D = (values[:, :, 0] - values[:, :, 1]) / (2.0 * SPACING / 2.0 ** np.arange(3))[None, :, None, None]
    coarse, fine = ((4.0 * D[:, k + 1] - D[:, k]) / 3.0 for k in (0, 1))
    error = np.abs(fine - coarse).max(axis=(1, 2), keepdims=True) + 1.5 * rounding / (SPACING / 4.0)
    return fine.swapaxes(1, 2), error
