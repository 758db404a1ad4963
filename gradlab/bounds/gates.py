"""What the gates of an LSTM or GRU allow: the path through them held fixed, and steps that dominate all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gradlab.links import log_zero, real_steps, sum_from_end
from gradlab.validation import Array, finite, real_array, square_matrix

_LOGISTIC_SLOPE = 0.25  # the largest of the logistic function; that of tanh is 1


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


def lstm_dominating_matrix(
    recurrent_matrices: ArrayLike,
    forget_supremum: ArrayLike,
    *,
    input_supremum: ArrayLike = 1.0,
    output_supremum: ArrayLike = 1.0,
) -> Array:
    """Return entries that no step Jacobian of an LSTM exceeds, whatever its inputs.

    For c = f∘c_prev + i∘g and h = o∘tanh(c) with f ≤ f̂, i ≤ î, o ≤ ô and |c_0| ≤ ĉ = î/(1 − f̂), |c_t| ≤ ĉ at all t,
    and with ¼ for the slope of a gate and 1 for that of tanh

        |∂c/∂h| ≤ K = ¼|W_i| + ¼ diag(ĉ)|W_f| + diag(î)|W_c|,   |∂c/∂c| ≤ diag f̂,
        |∂h/∂h| ≤ diag(ô) K + ¼ diag(tanh ĉ)|W_o|,              |∂h/∂c| ≤ diag(ô f̂).

    ``dominance_certificate(M, lags, slope_supremum=1.0, J=J)`` makes of it a bound on ‖∂h_T/∂h_t‖ over the full state,
    and a certificate: ρ(M) < 1 makes gradients vanish on every trajectory. Since |h| < 1, a gate's supremum follows
    from the weights: f̂_i = 1/(1 + e^{−a_i}) with a_i = Σ_j |W_f|_ij + max_x (U_f x + b_f)_i, and so for the others.

    Args:
        recurrent_matrices: W_i, W_f, W_c, W_o as they act [4, n, n], in Keras's order.
        forget_supremum: f̂ in [0, 1), a number or [n].
        input_supremum: î in [0, 1].
        output_supremum: ô in [0, 1].

    Returns:
        M [2n, 2n] over the state [h, c].

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, suprema out of range.
        TypeError: entries that are not real numbers.

    Source:
        The chain rule. Miller & Hardt 2019 certify LSTMs by norms of their matrices; entry by entry asks for less.

    Example:
        >>> from gradlab.bounds import dominance_certificate
        >>> W = np.full((4, 2, 2), 0.05)
        >>> M = lstm_dominating_matrix(W, 0.6)
        >>> M.shape, dominance_certificate(M, [1], slope_supremum=1.0).certified
        ((4, 4), True)
    """
    W_i, W_f, W_c, W_o = _absolute(recurrent_matrices, 4)
    n = len(W_i)
    f = _supremum("forget_supremum", forget_supremum, n)
    i = _supremum("input_supremum", input_supremum, n)
    o = _supremum("output_supremum", output_supremum, n)
    if (f >= 1).any():
        raise ValueError(f"forget_supremum must be below 1, got {f.max()}: a cell that forgets nothing is not bounded")
    c = i / (1 - f)
    K = _LOGISTIC_SLOPE * (W_i + c[:, None] * W_f) + i[:, None] * W_c
    upper = np.hstack([o[:, None] * K + _LOGISTIC_SLOPE * np.tanh(c)[:, None] * W_o, np.diag(o * f)])
    return np.vstack([upper, np.hstack([K, np.diag(f)])])


def gru_dominating_matrix(
    recurrent_matrices: ArrayLike,
    update_supremum: ArrayLike,
    *,
    update_infimum: ArrayLike = 0.0,
    reset_supremum: ArrayLike = 1.0,
    reset_after: bool = True,
    recurrent_bias: ArrayLike = 0.0,
) -> Array:
    """Return entries that no step Jacobian of a GRU exceeds, whatever its inputs.

    For h = z∘h_prev + (1 − z)∘g with ž ≤ z ≤ ẑ, r ≤ r̂ and |h_0| ≤ 1, so that |h_t| ≤ 1 and |h_prev − g| ≤ 2 at all t,
    and with ¼ for the slope of a gate and 1 for that of tanh

        |J| ≤ M = diag ẑ + ½|W_z| + diag(1 − ž) G,
        G = diag(r̂)|W_h| + ¼ diag(|W_h|1 + |b'|)|W_r|   (reset_after)   or   |W_h| (diag r̂ + ¼|W_r|).

    It serves `dominance_certificate` as `lstm_dominating_matrix` does, which says how the suprema follow from weights.

    Args:
        recurrent_matrices: W_z, W_r, W_h as they act [3, n, n], in Keras's order.
        update_supremum: ẑ in [0, 1], a number or [n].
        update_infimum: ž in [0, ẑ].
        reset_supremum: r̂ in [0, 1].
        reset_after: whether the reset gate acts after the matrix product, as in Keras by default.
        recurrent_bias: b' of the candidate, inside of the product with r; a number or [n]; of no account otherwise.

    Returns:
        M [n, n].

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, suprema out of range.
        TypeError: entries that are not real numbers.

    Source:
        The chain rule, as for `lstm_dominating_matrix`.

    Example:
        >>> gru_dominating_matrix(np.zeros((3, 2, 2)), [0.5, 0.75])
        array([[0.5 , 0.  ],
               [0.  , 0.75]])
    """
    W_z, W_r, W_h = _absolute(recurrent_matrices, 3)
    n = len(W_z)
    high = _supremum("update_supremum", update_supremum, n)
    low = _supremum("update_infimum", update_infimum, n)
    r = _supremum("reset_supremum", reset_supremum, n)
    if (low > high).any():
        raise ValueError("update_infimum must not exceed update_supremum; swap them")
    bias = np.abs(finite("recurrent_bias", real_array("recurrent_bias", recurrent_bias)))
    if bias.shape not in ((), (n,)):
        raise ValueError(f"recurrent_bias must be a number or [n] = ({n},), got shape {bias.shape}")
    if reset_after:
        G = r[:, None] * W_h + _LOGISTIC_SLOPE * (W_h.sum(axis=1) + bias)[:, None] * W_r
    else:
        G = W_h @ (np.diag(r) + _LOGISTIC_SLOPE * W_r)
    return np.diag(high) + 2 * _LOGISTIC_SLOPE * W_z + (1 - low)[:, None] * G


def _absolute(matrices: ArrayLike, count: int) -> Array:
    """Return the absolute entries of the recurrent matrices of a gated cell."""
    W = real_array("recurrent_matrices", matrices)
    if W.ndim != 3 or len(W) != count:
        raise ValueError(f"recurrent_matrices must be [{count}, n, n], one for each gate, got shape {W.shape}")
    return np.abs(np.stack([square_matrix("recurrent_matrices", one) for one in W]))


def _supremum(name: str, value: ArrayLike, n: int) -> Array:
    """Return the bound of a gate in [0, 1] as [n]."""
    bound = finite(name, real_array(name, value))
    if bound.shape not in ((), (n,)) or (bound < 0).any() or (bound > 1).any():
        raise ValueError(f"{name} must be a number in [0, 1] or one for each of the {n} units, got {value!r}")
    return np.broadcast_to(bound, (n,))
