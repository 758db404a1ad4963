"""The path through the gates of an LSTM or GRU, with the gates held fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gradlab.links import log_zero, real_steps, sum_from_end
from gradlab.validation import Array, finite, real_array


def gate_path(gates: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Return the logarithm of the derivative along the carried state of a gated cell, its gates held fixed.

    LSTM: ∂c_T/∂c_t = diag Π_s f_s, from c_s = f_s ∘ c_{s−1} + i_s ∘ g_s with f, i and g held fixed. GRU likewise
    ∂h_T/∂h_t = diag Π_s z_s with Keras's h_s = z_s ∘ h_{s−1} + (1 − z_s) ∘ g_s (where a paper swaps z and 1 − z, give
    1 − z). The derivative is diagonal, so its singular values are these numbers, in the order of the units.

    It is *not* the Jacobian of the cell: that also goes through the gates and the candidate, may be larger or smaller,
    and for the LSTM is over (h, c). A figure that shows this path should say so.

    Args:
        gates: f_t or z_t in [0, 1] [B, T, units] or [T, units].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        Σ_s ln f_s [B, T, units] (or [T, units]) in nats, never above 0; −∞ where a gate closed.

    Raises:
        ValueError: shapes that do not fit, or gates outside of [0, 1].
        TypeError: entries that are not real numbers.

    Source:
        Hochreiter & Schmidhuber 1997 for the path.

    Example:
        >>> gate_path([[0.5, 1.0], [0.25, 1.0]]) / np.log(2)
        array([[-3.,  0.],
               [-2.,  0.]])
    """
    f = finite("gates", real_array("gates", gates))
    if f.ndim not in (2, 3) or 0 in f.shape:
        raise ValueError(f"gates must be [batch, time, units] or [time, units], got shape {f.shape}")
    if (f < 0).any() or (f > 1).any():
        raise ValueError(
            f"gates must lie in [0, 1], got {f.min()} to {f.max()}; pass the gates, not their pre-activations"
        )
    single = f.ndim == 2
    f = f[None] if single else f
    real = real_steps(mask, f.shape[:2])
    steps = np.where(real[..., None], log_zero(f), 0.0)
    total = np.swapaxes(sum_from_end(np.swapaxes(steps, 1, 2)), 1, 2)
    return total[0] if single else total
