"""Step Jacobians of the simple RNN, the LSTM and the GRU as formulas, several times faster than autodiff.

Each is a sum of a few recurrent matrices with scaled rows, ∂h_t/∂h_{t−1} = diag(…) + Σ_k diag(s_k) W_k, and for all
steps at once that is one small matrix product per unit: [N, K] · [K, n] with K the number of gates. Nothing but the
result is ever as large as the result.

Slopes and gates are computed from pre-activations, never from outputs: sech²(a) and 1 − z = logistic(−a_z) keep all
their digits where units saturate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy.special import expit

from gradlab import activations
from gradlab.cells import VanillaRNNCell
from gradlab.step import Step
from gradlab.validation import Array


def tanh_slope(a: Array) -> Array:
    """Return sech²(a) = 4 e^{−2|a|} / (1 + e^{−2|a|})²."""
    decay = np.exp(-2.0 * np.abs(a))
    return 4.0 * decay / (1.0 + decay) ** 2


def logistic_slope(a: Array) -> Array:
    """Return e^{−|a|} / (1 + e^{−|a|})²."""
    decay = np.exp(-np.abs(a))
    return decay / (1.0 + decay) ** 2


class Activation(NamedTuple):
    """φ, φ' and 1 − φ as NumPy functions of the pre-activation."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    complement: Callable[[Array], Array]


# by the names of gradlab.activations; the slope of relu at 0 is 0, as there
ACTIVATIONS = {
    "tanh": Activation(np.tanh, tanh_slope, lambda a: 2.0 * expit(-2.0 * a)),
    "sigmoid": Activation(expit, logistic_slope, lambda a: expit(-a)),
    "relu": Activation(
        lambda a: np.maximum(a, 0.0), lambda a: (a > 0.0).astype(np.float64), lambda a: 1.0 - np.maximum(a, 0.0)
    ),
    "linear": Activation(lambda a: a, np.ones_like, lambda a: 1.0 - a),
}

# (h_{t−1} [N, n], x_t [N, d], room [N, n, n] for J_t) → h_t [N, n]; fills the room
Formula = Callable[[Array, Array, Array], Array]


def closed_form(step: Step) -> Formula | None:
    """Return the step Jacobian of a cell that gradlab has a formula for, or None.

    There is one for exactly these classes, computed in float64, with every activation among tanh, sigmoid, relu and
    linear: `VanillaRNNCell` and Keras's SimpleRNNCell, J = diag φ'(a)·W, or κ I + α diag φ'(a)·W of a leaky or residual
    update; Keras's LSTMCell, over [h, c]; Keras's GRUCell, with the reset gate before or after the product. A subclass
    may compute anything, and has none.

    Args:
        step: what `as_step` returns.

    Returns:
        A function (h_{t−1} [N, n], x_t [N, d], room [N, n, n]) → h_t [N, n] that writes ∂h_t/∂h_{t−1} into the room,
        or None.

    Source:
        Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014; as Keras orders them.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(1, "tanh", recurrent_initializer="identity")
        >>> formula = closed_form(gl.as_step(cell, input_size=1))
        >>> J = np.empty((1, 1, 1))
        >>> h = formula(np.array([[1.0]]), np.zeros((1, 1)), J)
        >>> print(f"{h[0, 0]:.4f} {J[0, 0, 0]:.4f} {1 - h[0, 0] ** 2:.4f}")
        0.7616 0.4200 0.4200
    """
    made = ingredients(step)
    return None if made is None else _FORMULAS[type(step.cell)](*made)


def ingredients(step: Step) -> tuple[Any, ...] | None:
    """Return (cell, kernel [d, K·n], recurrent kernel [n, K·n], bias, *activations) of a cell with a formula, or None.

    A GRU with the reset gate after the product has a bias on either side of it, [2, 3n].
    """
    cell = step.cell
    if type(cell) not in _FORMULAS or step.dtype != "float64":
        return None
    known = [ACTIVATIONS.get(activations.name_of(getattr(cell, name, None)) or "") for name in _functions(cell)]
    if None in known:
        return None
    kernel, recurrent, *rest = (np.asarray(weight, np.float64) for weight in step.weights)
    bias = rest[0] if rest else np.zeros(kernel.shape[1])
    return (cell, kernel, recurrent, bias, *known)


def _functions(cell: Any) -> tuple[str, ...]:
    """Return the names of the attributes that hold activations."""
    return ("activation", "recurrent_activation") if hasattr(cell, "recurrent_activation") else ("activation",)


def _rows_scaled(scales: list[Array], matrices: Array, room: Array) -> None:
    """Write Σ_k diag(s_k) W_k into `room` [N, n, n], for s_k [N, n] and matrices [n, K, n], W_k at matrices[:, k]."""
    s = np.stack(scales, axis=-1)  # [N, n, K]
    # one product [N, K]·[K, n] per row of the Jacobians; BLAS writes straight into the strided room
    np.matmul(s.swapaxes(0, 1), matrices, out=room.swapaxes(0, 1))


def gate_matrices(recurrent: Array) -> Array:
    """Return the matrices of a Keras recurrent kernel [n, K·n] as they act, [n, K, n] with W_k at [:, k]."""
    n = len(recurrent)
    return np.ascontiguousarray(recurrent.reshape(n, -1, n).transpose(2, 1, 0))


def _add_diagonal(room: Array, diagonal: Array | float) -> None:
    """Add diag(diagonal[b]) to each room[b]; a diagonal is a stride of n + 1."""
    np.einsum("bii->bi", room)[...] += diagonal


def _simple(cell: Any, kernel: Array, recurrent: Array, bias: Array, phi: Activation) -> Formula:
    """Of h = φ(a), a = W h + U x + b: J = diag φ'(a) · W; of h = κ h_prev + α φ(a): J = κ I + α diag φ'(a) · W."""
    W = np.ascontiguousarray(recurrent.T)
    kernel_first = type(cell) is not VanillaRNNCell
    update = None if kernel_first else cell.update

    def formula(h: Array, x: Array, room: Array) -> Array:
        # added up in the cell's own order: at a kink (relu at 0) rounding decides, and should decide as it did there
        a = h @ recurrent + (x @ kernel + bias) if kernel_first else h @ recurrent + x @ kernel + bias
        if update is None:
            np.multiply(phi.slope(a)[:, :, None], W, out=room)
            return phi.value(a)
        kept, added = update
        np.multiply(added * phi.slope(a)[:, :, None], W, out=room)
        _add_diagonal(room, kept)
        return kept * h + added * phi.value(a)

    return formula


class LSTMSlopes(NamedTuple):
    """One step of an LSTM, c = f∘c_prev + i∘g and h = o∘φ(c), and what multiplies its matrices; each [N, u].

    Attributes:
        state: [h, c] after the step [N, 2u].
        highway: f = ∂c/∂c_prev with the gates held fixed.
        input_gate: g i' = ∂c/∂a_i.
        forget_gate: c_prev f' = ∂c/∂a_f.
        candidate: i g' = ∂c/∂a_g.
        output_gate: φ(c) o' = ∂h/∂a_o.
        into_h: o φ'(c) = ∂h/∂c.
    """

    state: Array
    highway: Array
    input_gate: Array
    forget_gate: Array
    candidate: Array
    output_gate: Array
    into_h: Array


def lstm_slopes(
    cell: Any, kernel: Array, recurrent: Array, bias: Array, phi: Activation, gate: Activation, state: Array, x: Array
) -> LSTMSlopes:
    """Return one step from [h, c] [N, 2u] and x [N, d]."""
    u = len(recurrent)
    h, c_before = state[:, :u], state[:, u:]
    ai, af, ag, ao = np.split(h @ recurrent + (x @ kernel + bias), 4, axis=1)
    i, f, g, o = gate.value(ai), gate.value(af), phi.value(ag), gate.value(ao)
    c = f * c_before + i * g
    phi_c = phi.value(c)
    return LSTMSlopes(
        state=np.concatenate([o * phi_c, c], axis=1),
        highway=f,
        input_gate=g * gate.slope(ai),
        forget_gate=c_before * gate.slope(af),
        candidate=i * phi.slope(ag),
        output_gate=phi_c * gate.slope(ao),
        into_h=o * phi.slope(c),
    )


def _lstm(cell: Any, kernel: Array, recurrent: Array, bias: Array, phi: Activation, gate: Activation) -> Formula:
    """The Jacobian of [h, c] with respect to both.

    ∂c/∂h = diag(g i') W_i + diag(c_prev f') W_f + diag(i g') W_c,  ∂c/∂c = diag f,
    ∂h/∂h = diag(φ(c) o') W_o + diag(o φ'(c)) ∂c/∂h,               ∂h/∂c = diag(o φ'(c) f).
    """
    u = len(recurrent)
    W = gate_matrices(recurrent)  # i, f, c, o
    first = np.ascontiguousarray(W[:, :3])

    def formula(state: Array, x: Array, room: Array) -> Array:
        s = lstm_slopes(cell, kernel, recurrent, bias, phi, gate, state, x)
        into_c = [s.input_gate, s.forget_gate, s.candidate]
        into_h = [s.into_h * scale for scale in into_c]
        _rows_scaled([*into_h, s.output_gate], W, room[:, :u, :u])
        _rows_scaled(into_c, first, room[:, u:, :u])
        room[:, :, u:] = 0.0
        _add_diagonal(room[:, :u, u:], s.into_h * s.highway)
        _add_diagonal(room[:, u:, u:], s.highway)
        return s.state

    return formula


class GRUSlopes(NamedTuple):
    """One step of a GRU, h = z∘h_prev + (1 − z)∘g, and what multiplies its matrices; each [N, n].

    Attributes:
        state: h after the step.
        highway: z = ∂h/∂h_prev with gates and candidate held fixed.
        update_gate: (h_prev − g) z' = ∂h/∂a_z.
        into_h: (1 − z) φ' = ∂h/∂a_g.
        reset: r.
        reset_gate: (W h_prev + b') r' with the reset gate after the product, h_prev r' with it before: what r is
            multiplied by, times its slope.
    """

    state: Array
    highway: Array
    update_gate: Array
    into_h: Array
    reset: Array
    reset_gate: Array


def gru_slopes(
    cell: Any, kernel: Array, recurrent: Array, bias: Array, phi: Activation, gate: Activation, h: Array, x: Array
) -> GRUSlopes:
    """Return one step from h [N, n] and x [N, d]."""
    n = len(recurrent)
    # with the reset gate after the product Keras keeps a bias on either side of it, [2, 3n]
    b, b_inner = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    xz, xr, xg = np.split(x @ kernel + b, 3, axis=1)
    if cell.reset_after:
        hz, hr, inner = np.split(h @ recurrent + b_inner, 3, axis=1)
    else:
        hz, hr = np.split(h @ recurrent[:, : 2 * n], 2, axis=1)
        inner = h
    az, ar = xz + hz, xr + hr
    z, r, new = gate.value(az), gate.value(ar), gate.complement(az)
    ag = xg + (r * inner if cell.reset_after else (r * h) @ recurrent[:, 2 * n :])
    g = phi.value(ag)
    return GRUSlopes(
        state=z * h + new * g,
        highway=z,
        update_gate=(h - g) * gate.slope(az),
        into_h=new * phi.slope(ag),
        reset=r,
        reset_gate=inner * gate.slope(ar),
    )


def _gru(cell: Any, kernel: Array, recurrent: Array, bias: Array, phi: Activation, gate: Activation) -> Formula:
    """With the reset gate r after the product (as in cuDNN) or before it.

    After:  g = φ(U x + b + r∘(W h + b')),  ∂g/∂h = diag(φ') [diag r · W + diag((W h + b')∘r') W_r].
    Before: g = φ(U x + b + W (r∘h)),       ∂g/∂h = diag(φ') W [diag r + diag(h∘r') W_r].
    J = diag z + diag((h_prev − g) z') W_z + diag(1 − z) ∂g/∂h.
    """
    n = len(recurrent)
    W = gate_matrices(recurrent)  # z, r, h
    W_z, W_h = np.ascontiguousarray(W[:, :1]), W[:, 2]

    def formula(h: Array, x: Array, room: Array) -> Array:
        s = gru_slopes(cell, kernel, recurrent, bias, phi, gate, h, x)
        if cell.reset_after:
            _rows_scaled([s.update_gate, s.into_h * s.reset_gate, s.into_h * s.reset], W, room)
        else:
            _rows_scaled([s.update_gate], W_z, room)
            within = W_h * s.reset_gate[:, None, :]
            within = (within.reshape(-1, n) @ W[:, 1]).reshape(room.shape)
            within += W_h * s.reset[:, None, :]
            within *= s.into_h[:, :, None]
            room += within
        _add_diagonal(room, s.highway)
        return s.state

    return formula


_FORMULAS: dict[Any, Callable[..., Formula]] = {
    VanillaRNNCell: _simple,
    keras.layers.SimpleRNNCell: _simple,
    keras.layers.LSTMCell: _lstm,
    keras.layers.GRUCell: _gru,
}
