"""The paths through an LSTM or a GRU: each step Jacobian as a sum with one term for each place where h_{t−1} enters.

A gated cell reads its old state in several places: on the highway, which a gate multiplies, and in the pre-activation
of every gate and of the candidate. By the chain rule J_t is the sum over these places, J_t = Σ_p J_{t,p}, and J_{t,p}
is what is left of J_t when the old state is held fixed in all places but one. This module is the account of a step's
stretching, and of the gradient that arrives, by path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gradlab.blas import one_blas_thread
from gradlab.closed_form import GRUSlopes, LSTMSlopes, gate_matrices, gru_slopes, ingredients, lstm_slopes
from gradlab.gradients import StateGradients
from gradlab.jacobian import leads_on, step_jacobians
from gradlab.predictions.gated_edge import gated_edge
from gradlab.trajectory import Trajectory
from gradlab.validation import Array


class _Path(NamedTuple):
    """One path as a product of factors: rows r of J_p are diag(into[r]) · factors[0] · factors[1] · ….

    Attributes:
        reads: the columns: which part of h_{t−1} the path starts from.
        factors: diagonals [B, T, u] at even places, matrices [u, u] at odd ones.
        into: the rows that it arrives in, and a last diagonal [B, T, u] for each.
    """

    reads: slice
    factors: tuple[Array, ...]
    into: tuple[tuple[slice, Array], ...]


@dataclass(frozen=True, eq=False)
class GatePaths:
    """Every step Jacobian of an LSTM or a GRU as a sum of paths, J_t = Σ_p J_{t,p}.

    What is kept is the diagonals that the paths are made of, [B, T, units] each; the Jacobians are made when asked for.

    Attributes:
        names: the paths in order: LSTM "highway", "input_gate", "forget_gate", "candidate", "output_gate"; GRU
            "highway", "update_gate", "reset_gate", "candidate".
        traj: the run.
    """

    names: tuple[str, ...]
    traj: Trajectory
    _paths: tuple[_Path, ...]
    _total: Array | None = None

    @property
    def jacobians(self) -> Array:
        """J_{t,p}, float64 [B, T, paths, n, n], made anew each time; array index s holds t = s + 1.

        ``jacobians[:, :, p]`` is the path ``names[p]``. A masked step is the identity, all of it on the highway.
        """
        B, T, _ = self.traj.inputs.shape
        n = self.traj.step.state_size
        found = np.zeros((B, T, len(self.names), n, n))
        for p, path in enumerate(self._paths):
            block = _dense(path.factors)
            for rows, last in path.into:
                np.multiply(last[..., None], block, out=found[:, :, p, rows, path.reads])
        if self.traj.mask is not None:
            found[~self.traj.mask] = 0.0
            found[~self.traj.mask, 0] = np.eye(n)
        return found

    @property
    def highway(self) -> Array:
        """f_t of an LSTM, z_t of a GRU [B, T, units]: the diagonal that the highway multiplies the old state by."""
        return self._paths[0].factors[0]

    @cached_property
    def total(self) -> Array:
        """J_t = Σ_p J_{t,p} [B, T, n, n]: what `step_jacobians` gives."""
        return step_jacobians(self.traj) if self._total is None else self._total

    def shares_of_singular_value(self) -> Array:
        """Return the part that each path has in the largest singular value of each step, [B, T, paths].

        s_p = u_1ᵀ J_{t,p} v_1 / σ_1 with σ_1, u_1, v_1 of J_t itself, so that Σ_p s_p = u_1ᵀ J_t v_1 / σ_1 = 1. To
        first order it is d ln σ_1(J_t) / d ln α_p where the path is taken α_p times. A share is negative where a path
        works against the others, and may then be above 1 for those. Where σ_1 is not simple, u_1 and v_1 are one choice
        of many, and so are the shares.

        Returns:
            Shares, dimensionless, that sum to 1 over the paths; NaN where J_t = 0 and where a step is masked.

        Example:
            >>> import gradlab as gl, keras, numpy as np
            >>> paths = gl.gate_paths(gl.rollout(keras.layers.GRUCell(4), np.ones((1, 3, 2))))
            >>> shares = paths.shares_of_singular_value()
            >>> shares.shape, bool(np.allclose(shares.sum(axis=2), 1.0, rtol=0, atol=1e-12))
            ((1, 3, 4), True)
        """
        with one_blas_thread():
            left, _, right = np.linalg.svd(self.total)
        return self._shares(left[..., :, 0], right[..., 0, :])

    def shares_of_product(self) -> Array:
        """Return the part that each path of each step has in the largest singular value of ∂h_T/∂h_0, [B, T, paths].

        With P = J_T ··· J_1 and its σ_1, u_1, v_1, and for every step t,
        s_{t,p} = u_1ᵀ (J_T ··· J_{t+1}) J_{t,p} (J_{t−1} ··· J_1) v_1 / σ_1, and Σ_p s_{t,p} = 1 for each t: as for a
        single step, but in the directions that the whole sequence stretches most. To first order it is
        d ln σ_1(P) / d ln α_{t,p}. Where σ_1 of P is not simple, see above.

        Returns:
            Shares as `shares_of_singular_value` gives them; NaN throughout a sequence with P = 0.
        """
        with one_blas_thread():
            left, right = _directions_of_product(self.total)
        return self._shares(left, right)

    def shares_of_gradient(self, gradients: StateGradients) -> Array:
        """Return the part that each path has in the gradient that comes back through each step, [B, T, paths].

        With g_t = ∂L/∂h_t (total), what arrives at t − 1 through time is r = J_tᵀ g_t = Σ_p J_{t,p}ᵀ g_t, which is
        ``gradients.recurrent[:, t − 1]``: ∂L/∂h_{t−1} without the part that the loss puts on h_{t−1} directly. The
        share of a path is the length of its term along the sum, s_p = r · (J_{t,p}ᵀ g_t) / ‖r‖², and Σ_p s_p = 1. For a
        loss at T alone r is ∂L/∂h_{t−1}. A term at a right angle to r has share 0, one against it a negative share.

        Shares do not depend on the size of the gradient: they are computed in log scale from ``gradients.direct`` and
        stay right where g_t has underflown.

        Args:
            gradients: what `state_gradients` returns for this trajectory.

        Returns:
            Shares, dimensionless, that sum to 1 over the paths; NaN where r = 0 and where a step is masked.

        Raises:
            TypeError: something that is not `StateGradients`.
            ValueError: gradients of another shape than the states.
        """
        if not isinstance(gradients, StateGradients):
            raise TypeError(
                f"gradients must be StateGradients, got {type(gradients).__name__};"
                " gl.state_gradients(traj, None, loss) makes them"
            )
        if gradients.direct.shape != self.traj.states.shape:
            raise ValueError(
                f"gradients must be those of this trajectory, [batch, time + 1, n] = {self.traj.states.shape}, got"
                f" shape {gradients.direct.shape}"
            )
        return self._shares(*_gradient_directions(self.total, gradients.direct))

    def spectral_edges(self) -> Array:
        """Return how far to the right the eigenvalues of each step Jacobian reach, as random matrix theory has it.

        `gradlab.predictions.gated_edge` of the gates at that step and of the gains √n·rms(W_p) of the recurrent
        matrices, which it takes for random and independent of the gates: a prediction for large networks at their
        initialisation, to be seen beside the eigenvalues of `step_jacobians`.

        Returns:
            The edge [B, T]; 1 where a step is masked.

        Raises:
            ValueError: a GRU with its reset gate before the product, where a path goes through two matrices.
        """
        if any(len(path.factors) > 3 for path in self._paths):
            raise ValueError(
                "spectral_edges needs paths through one matrix each, got a GRU with reset_after=False, whose reset"
                " gate acts through two; gradlab.predictions knows of no edge for it"
            )
        u = self.highway.shape[-1]
        m = self.traj.step.state_size // u
        ways = self._paths[1:]
        gains = [float(np.linalg.norm(path.factors[1])) / np.sqrt(u) for path in ways]
        ends = [_ends(path, u, m) for path in self._paths]
        keep = np.einsum("btui,btuj->btuij", *ends[0])
        into, reads = (np.stack([end[i] for end in ends[1:]], axis=2) for i in (0, 1))
        real = np.ones(keep.shape[:2], bool) if self.traj.mask is None else self.traj.mask
        found = np.ones(real.shape)
        for place in np.argwhere(real):
            b, s = place
            found[b, s] = gated_edge(keep[b, s], into[b, s], reads[b, s], gains)
        return found

    def _shares(self, left: Array, right: Array) -> Array:
        """Return leftᵀ J_p right / Σ_p leftᵀ J_p right [B, T, paths] for vectors [B, T, n] of any length."""
        parts = np.stack([_form(path, left, right) for path in self._paths], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = parts / parts.sum(axis=-1, keepdims=True)
        shares[~np.isfinite(shares).all(axis=-1)] = np.nan
        if self.traj.mask is not None:
            shares[~self.traj.mask] = np.nan
        return shares


def gate_paths(traj: Trajectory, *, J: Array | None = None) -> GatePaths:
    """Return the decomposition of every step Jacobian of an LSTM or a GRU into the paths through its gates.

    LSTM, c = f∘c_prev + i∘g and h = o∘φ(c), over the full state [h, c]; a path into c goes on into h times o φ'(c):

        highway       ∂c/∂c = diag f                    (and rows h: diag(o φ'(c)) times the same)
        input_gate    ∂c/∂h = diag(g i') W_i            (")
        forget_gate   ∂c/∂h = diag(c_prev f') W_f       (")
        candidate     ∂c/∂h = diag(i g') W_c            (")
        output_gate   ∂h/∂h = diag(φ(c) o') W_o

    GRU, h = z∘h_prev + (1 − z)∘g with g = φ(U x + b + r∘(W h_prev + b')) (reset_after) or φ(U x + b + W (r∘h_prev)):

        highway       diag z
        update_gate   diag((h_prev − g) z') W_z
        reset_gate    diag((1 − z) φ' (W h_prev + b') r') W_r   or   diag((1 − z) φ') W diag(h_prev r') W_r
        candidate     diag((1 − z) φ' r) W                      or   diag((1 − z) φ') W diag r

    Primes are derivatives at the pre-activation, W are as they act (the transpose of Keras's). The highway alone is
    what `gradlab.bounds.gate_path` multiplies up; it is not the Jacobian, and this is the account of the difference.

    Args:
        traj: a run of a Keras LSTMCell or GRUCell, or of a layer of either (one direction of a Bidirectional, too),
            with activations among tanh, sigmoid, relu and linear; with or without a mask.
        J: ``step_jacobians(traj)``, if it is there already; else it is computed when shares are asked for.

    Returns:
        The `GatePaths`.

    Raises:
        TypeError: something that is not a `Trajectory`, or a run of another cell. A stack has no such sum with one term
            for a gate: a path may leave one layer by any gate and enter the next by any other; give its layers one by
            one, each with the outputs of the one below as inputs.
        ValueError: the cell's settings were changed after the run; J of another shape.

    Source:
        Hochreiter & Schmidhuber 1997 and Gers et al. 2000 (LSTM), Cho et al. 2014 (GRU), as Keras orders them; the
        shares are gradlab's.

    Example:
        >>> import gradlab as gl, keras, numpy as np
        >>> traj = gl.rollout(keras.layers.LSTMCell(3), np.ones((2, 5, 2)))
        >>> paths = gate_paths(traj)
        >>> paths.names
        ('highway', 'input_gate', 'forget_gate', 'candidate', 'output_gate')
        >>> bool(np.allclose(paths.jacobians.sum(axis=2), gl.step_jacobians(traj), rtol=0, atol=1e-14))
        True
    """
    if not isinstance(traj, Trajectory):
        raise TypeError(
            f"traj must be a Trajectory, got {type(traj).__name__}; gl.rollout(cell, inputs) makes one of a cell"
        )
    made = _gated(traj)
    if made is None:
        raise TypeError(
            "gate_paths takes a run of a Keras LSTMCell or GRUCell itself, or of a layer of either, with activations"
            f" among tanh, sigmoid, relu and linear; got {traj.step.description}. A simple RNN has one path; of a stack"
            " give one layer at a time, with the outputs of the layer below as inputs"
        )
    (B, T, _), n = traj.inputs.shape, traj.step.state_size
    if J is not None and np.shape(J) != (B, T, n, n):
        raise ValueError(f"J must be [batch, time, n, n] = {(B, T, n, n)}, got shape {np.shape(J)}; leave it out")
    parts = _slopes(traj)
    if not leads_on(traj, parts["state"]):
        raise ValueError(
            f"gate_paths needs the cell as it was when the trajectory was made, got {traj.step.description} with other"
            " settings by now; roll it out again"
        )
    cell, _, recurrent, *_ = made
    W = np.moveaxis(gate_matrices(recurrent), 1, 0)
    paths = _lstm_paths(parts, W) if "output_gate" in parts else _gru_paths(parts, W, cell.reset_after)
    return GatePaths(tuple(paths), traj, tuple(paths.values()), J)


def has_gate_paths(traj: Trajectory) -> bool:
    """Return whether `gate_paths` takes a run: one of a gated cell with a closed form, as the cell is now."""
    return _gated(traj) is not None and leads_on(traj, _slopes(traj)["state"])


def _gated(traj: Trajectory) -> tuple[Any, ...] | None:
    """Return the `ingredients` of a gated cell, None of any other."""
    return ingredients(traj.step) if hasattr(traj.step.cell, "recurrent_activation") else None


def _slopes(traj: Trajectory) -> dict[str, Array]:
    """Return what multiplies the matrices of a gated cell at every step, [B, T, u] each, and the states after it."""
    (B, T, d), n = traj.inputs.shape, traj.step.state_size
    made = _gated(traj)
    assert made is not None
    # each is no larger than the states themselves, so that nothing need be done in chunks
    before, inputs = traj.states[:, :-1].reshape(B * T, n), traj.inputs.reshape(B * T, d)
    slopes_of: Callable[..., LSTMSlopes | GRUSlopes] = lstm_slopes if n == 2 * len(made[2]) else gru_slopes
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named by step_jacobians
        slopes = slopes_of(*made, before, inputs)
    return {name: value.reshape(B, T, -1) for name, value in slopes._asdict().items()}


def _lstm_paths(s: dict[str, Array], W: Array) -> dict[str, _Path]:
    """Return the paths of an LSTM by name, for W [4, u, u] in the order i, f, c, o."""
    u = W.shape[-1]
    h, c = slice(0, u), slice(u, 2 * u)
    one = np.ones_like(s["into_h"])
    into = ((h, s["into_h"]), (c, one))
    return {
        "highway": _Path(c, (s["highway"],), into),
        "input_gate": _Path(h, (s["input_gate"], W[0]), into),
        "forget_gate": _Path(h, (s["forget_gate"], W[1]), into),
        "candidate": _Path(h, (s["candidate"], W[2]), into),
        "output_gate": _Path(h, (s["output_gate"], W[3]), ((h, one),)),
    }


def _gru_paths(s: dict[str, Array], W: Array, reset_after: bool) -> dict[str, _Path]:
    """Return the paths of a GRU by name, for W [3, n, n] in the order z, r, h."""
    h, one = slice(0, W.shape[-1]), np.ones_like(s["highway"])
    if reset_after:
        reset: tuple[Array, ...] = (s["into_h"] * s["reset_gate"], W[1])
        candidate: tuple[Array, ...] = (s["into_h"] * s["reset"], W[2])
    else:
        reset = (s["into_h"], W[2], s["reset_gate"], W[1])
        candidate = (s["into_h"], W[2], s["reset"])
    factors = {"highway": (s["highway"],), "update_gate": (s["update_gate"], W[0])}
    factors |= {"reset_gate": reset, "candidate": candidate}
    return {name: _Path(h, product, ((h, one),)) for name, product in factors.items()}


def _dense(factors: tuple[Array, ...]) -> Array:
    """Return the product of the factors of a path as matrices [B, T, u, u]."""
    block: Array = np.eye(factors[0].shape[-1])
    for place in reversed(range(len(factors))):
        block = factors[place] @ block if place % 2 else factors[place][..., :, None] * block
    return block


def _ends(path: _Path, u: int, m: int) -> tuple[Array, Array]:
    """Return what a path without its matrix writes into a unit's m states, and what it reads of them, [B, T, u, m]."""
    into, reads = np.zeros((2, *path.factors[0].shape, m))
    for rows, last in path.into:
        into[..., rows.start // u] = last * path.factors[0]
    reads[..., path.reads.start // u] = path.factors[2] if len(path.factors) > 2 else 1.0
    return into, reads


def _form(path: _Path, left: Array, right: Array) -> Array:
    """Return leftᵀ J_p right [B, T] without making J_p."""
    v = right[..., path.reads]
    for place in reversed(range(len(path.factors))):
        v = v @ path.factors[place].T if place % 2 else path.factors[place] * v
    w = sum(last * left[..., rows] for rows, last in path.into)
    return np.einsum("btu,btu->bt", v, w)


def _gradient_directions(J: Array, direct: Array) -> tuple[Array, Array]:
    """Return g_t and J_tᵀ g_t for t = 1 … T, [B, T, n] each, every vector scaled to a largest entry in [½, 1)."""
    left, right = np.empty((2, *J.shape[:3]))
    g, exponent = _scaled(direct[:, -1])
    for s in reversed(range(J.shape[1])):
        left[:, s] = g
        back, gained = _scaled(np.einsum("bij,bi->bj", J[:, s], g))
        right[:, s] = back
        own, start = _scaled(direct[:, s])
        # ldexp of what is 2^-1100 of its partner gives 0, far below the rounding of the sum
        arrived = np.where(back.any(axis=1), exponent + gained, _NEVER)
        top = np.maximum(arrived, np.where(own.any(axis=1), start, _NEVER))
        g, gained = _scaled(_ldexp(back, arrived - top) + _ldexp(own, start - top))
        exponent = top + gained
    return left, right


_NEVER = -(2**40)  # the binary exponent of a zero vector


def _directions_of_product(J: Array) -> tuple[Array, Array]:
    """Return (J_T ··· J_{t+1})ᵀ u_1 and J_{t−1} ··· J_1 v_1 for t = 1 … T, [B, T, n] each, scaled as above."""
    B, T, n, _ = J.shape
    product = np.broadcast_to(np.eye(n), (B, n, n))
    for s in range(T):
        product = J[:, s] @ product
        product = np.ldexp(product, -np.frexp(np.abs(product).max(axis=(1, 2)))[1][:, None, None])
    left, right = np.empty((2, B, T, n))
    v = np.linalg.svd(product)[2][:, 0]
    for s in range(T):
        right[:, s] = v
        v = _scaled(np.einsum("bij,bj->bi", J[:, s], v))[0]
    for s in reversed(range(T)):  # P v_1 = σ_1 u_1: the end of one sweep is the start of the other
        left[:, s] = v
        v = _scaled(np.einsum("bij,bi->bj", J[:, s], v))[0]
    return left, right


def _scaled(vectors: Array) -> tuple[Array, Array]:
    """Return vectors [B, n] with their largest entry in [½, 1), and the exponents of two taken out (exact)."""
    exponent = np.frexp(np.abs(vectors).max(axis=1))[1]
    return np.ldexp(vectors, -exponent[:, None]), exponent.astype(np.int64)


def _ldexp(vectors: Array, exponent: Array) -> Array:
    """Return v·2^e for vectors [B, n] and exponents [B] up to 0, or of any size for zero vectors."""
    return np.ldexp(vectors, np.clip(exponent, -2000, 0)[:, None].astype(np.int32))
