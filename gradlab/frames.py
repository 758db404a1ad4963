"""Frames of a few directions, carried along a trajectory by Jacobian-vector and vector-Jacobian products."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.linalg import qr
from scipy.linalg.lapack import dgejsv

from gradlab.blas import one_blas_thread
from gradlab.jacobian import check_connected
from gradlab.scales import ROUNDING, descending, log2_abs
from gradlab.step import StepFunction
from gradlab.trajectory import Trajectory
from gradlab.validation import Array

CHUNK_STEPS = 64  # steps per call of a graph: what a call returns stays small
SEPARATE_BITS = 56  # rows this far apart in scale do not act on each other's singular vectors in float64
WINDOW_BITS = 1800  # what one call of the Jacobi SVD may span, its largest row at 2^900 and its smallest at 2^-900
U_GROWTH = 2.0**7  # |U| with column pivoting is at most 1; past this, order by pivoting
LN2 = float(np.log(2.0))


class Sweeps:
    """Carries frames [A, B, n, m], one for each of A times, along a trajectory; QR after every step."""

    def __init__(self, traj: Trajectory) -> None:
        B, T, d = traj.inputs.shape
        self.T, self.weights = T, traj.step.weights
        taken = np.ones((B, T), bool) if traj.mask is None else traj.mask
        self._sequences = tuple(a.swapaxes(0, 1) for a in (traj.states[:, :-1], traj.inputs, taken))
        kind = tuple(tf.TensorSpec.from_tensor(weight) for weight in traj.step.weights), traj.step.state_size, d
        self._forward = traj.step.function.graph(_sweep_graph, *kind, True)
        self._backward = traj.step.function.graph(_sweep_graph, *kind, False)
        self._description = traj.step.description

    def _run(self, graph: Any, first: int, last: int, frames: Array) -> tuple[Array, ...]:
        """Carry frames over the steps first < s ≤ last, either way; check that they stay finite."""
        steps = (tf.constant(a[first:last]) for a in self._sequences)
        out = tuple(one.numpy() for one in graph(self.weights, *steps, tf.constant(frames)))
        if not np.isfinite(out[0]).all():
            raise ValueError(
                f"the derivative of {self._description} is not finite between steps {first + 1} and {last};"
                " gl.step_jacobians(traj) names the step of a network that is not too large"
            )
        return out

    def _cuts(self, times: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Pieces (first, last) of the way from the earliest time to T, cut at each time and every CHUNK_STEPS."""
        cuts = sorted({*times.tolist(), *range(int(times[0]), self.T, CHUNK_STEPS), self.T})
        return list(itertools.pairwise(cuts))

    def forward(self, frames: Array, times: NDArray[np.int64]) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
        """Carry each frame from its time to T.

        Returns:
            ln σ [A, B, m] of P_t restricted to each frame, left vectors at T and right vectors at t [A, B, n, m], and
            whether a direction vanished in rounding [A].
        """
        A, B, n, m = frames.shape
        moved, product = np.empty((0, B, n, m)), _Graded.identity(0, m)
        rounded = np.zeros(A, bool)
        for first, last in self._cuts(times):
            new = slice(len(moved), int(np.count_nonzero(times <= first)))
            moved = np.concatenate([moved, frames[new]])
            product = product.joined(_Graded.identity((new.stop - new.start) * B, m))
            moved, R, lost = self._run(self._forward, first, last, moved)
            rounded[: len(moved)] |= lost.any(axis=(0, 2))
            with one_blas_thread():
                for factor in R.reshape(last - first, -1, m, m):
                    product = product.times(factor)
        values, left, right = (a.reshape(A, B, *a.shape[1:]) for a in _graded_svd(product))
        return values, moved @ left, frames @ right, rounded

    def backward(self, frames: Array, times: NDArray[np.int64], *, shared: bool = False) -> Array:
        """Carry each frame [A, B, n, m] from T back to its time; or one for all, read out at each time."""
        out = np.empty((len(times), *frames.shape[1:]))
        for first, last in reversed(self._cuts(times)):
            frames = self._run(self._backward, first, last, frames)[0]
            ended = np.flatnonzero(times == first)
            if len(ended):
                out[ended] = frames[-1:]
                frames = frames if shared else frames[:-1]
        return out


def _sweep_graph(step: StepFunction, weights: Any, n: int, d: int, forward: bool) -> Any:
    """Return the traced sweep of frames over L steps, each followed by a QR.

    (weights, h [L, B, n], x [L, B, d], mask [L, B], frames [A, B, n, m]) → (frames, R [L, A, B, m, m], whether a
    direction vanished in rounding [L, A, B]); backwards it takes the steps from the last to the first.
    """
    lost_below = max(1.0, n / 32) * ROUNDING

    def pushed(w: Any, state: tf.Tensor, inputs: tf.Tensor, V: tf.Tensor) -> tf.Tensor:
        """J v for each v of V [D, B, n]: the derivative of u ↦ Jᵀu, which is linear, applied backwards."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            u = tf.zeros_like(state)
            outer.watch(u)
            pulled_u = pulled(w, state, inputs, u[None], mapped=False)[0]
        return tf.vectorized_map(lambda v: outer.gradient(pulled_u, u, output_gradients=v), V)

    def pulled(w: Any, state: tf.Tensor, inputs: tf.Tensor, U: tf.Tensor, *, mapped: bool = True) -> tf.Tensor:
        """Jᵀ u for each u of U [D, B, n]."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(state)
            after = step(w, state, inputs)

        def one(u: tf.Tensor) -> tf.Tensor:
            gradient = tape.gradient(after, state, output_gradients=u)
            check_connected(gradient)
            return tf.convert_to_tensor(gradient)

        return tf.vectorized_map(one, U) if mapped else one(U[0])[None]

    def orthonormal(C: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """QR of C [A, B, n, m], rows in descending order: accurate row by row, whatever their scales."""
        size = tf.reduce_max(tf.abs(C), axis=-1)
        rows = tf.argsort(size, axis=-1, direction="DESCENDING", stable=True)
        Q, R = tf.linalg.qr(tf.gather(C, rows, axis=2, batch_dims=2))
        Q = tf.gather(Q, tf.argsort(rows, axis=-1), axis=2, batch_dims=2)
        pivots = tf.abs(tf.linalg.diag_part(R))
        scale = tf.gather(size, rows[..., : tf.shape(R)[-1]], axis=2, batch_dims=2)
        lost = pivots <= lost_below * scale
        return Q, tf.where(lost[..., None], tf.zeros_like(R), R), tf.reduce_any(lost & (pivots > 0), axis=-1)

    specs = [tf.TensorSpec([None, None, size], tf.float64) for size in (n, d)]
    specs += [tf.TensorSpec([None, None], tf.bool), tf.TensorSpec([None, None, n, None], tf.float64)]

    @tf.function(input_signature=[weights, *specs], autograph=False)
    def sweep(
        w: Any, states: tf.Tensor, inputs: tf.Tensor, mask: tf.Tensor, frames: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        L = tf.shape(states)[0]
        triangles = tf.TensorArray(tf.float64, size=L if forward else 0, infer_shape=False)
        flags = tf.TensorArray(tf.bool, size=L if forward else 0, infer_shape=False)
        A, B, m = tf.shape(frames)[0], tf.shape(frames)[1], tf.shape(frames)[3]

        def body(s: tf.Tensor, frames: tf.Tensor, triangles: Any, flags: Any) -> tuple[Any, ...]:
            t = s if forward else L - 1 - s
            V = tf.reshape(tf.transpose(frames, (0, 3, 1, 2)), (A * m, B, n))
            moved = (pushed if forward else pulled)(w, states[t], inputs[t], V)
            moved = tf.where(mask[t][:, None], moved, V)
            moved = tf.transpose(tf.reshape(moved, (A, m, B, n)), (0, 2, 3, 1))
            Q, R, lost = orthonormal(moved)
            if forward:
                triangles, flags = triangles.write(s, R), flags.write(s, lost)
            return s + 1, tf.ensure_shape(Q, [None, None, n, None]), triangles, flags

        _, frames, triangles, flags = tf.while_loop(lambda s, *_: s < L, body, (0, frames, triangles, flags))
        return (frames, triangles.stack(), flags.stack()) if forward else (frames,)

    return sweep


# --- The small product, in graded form ---------------------------------------------------------------------------


class _Graded(NamedTuple):
    """A batch of small products Q · diag(m·2^e) · Y: Q orthogonal, Y well conditioned, an exact zero has m = 0."""

    Q: Array  # [N, m, m]
    mantissa: Array  # [N, m]
    exponent: NDArray[np.int64]  # [N, m]
    Y: Array  # [N, m, m]

    @classmethod
    def identity(cls, N: int, m: int) -> _Graded:
        """N identities."""
        eye = np.broadcast_to(np.eye(m), (N, m, m))
        return cls(eye, np.ones((N, m)), np.zeros((N, m), np.int64), eye)

    def joined(self, other: _Graded) -> _Graded:
        """One batch of two."""
        return _Graded(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def log2_scale(self) -> Array:
        """log2|m·2^e|, −∞ for an exact zero."""
        return self.exponent + log2_abs(self.mantissa)

    def times(self, F: Array) -> _Graded:
        """F times this product, F [N, m, m], by a QR whose columns go in descending order of their scaled size.

        F Q = Q' R, and R diag(d) = diag(d') (I + U) with U_ij = (R_ij/R_ii)·(d_j/d_i): the ratio is taken from the
        exponents. Where the order by size leaves U large, the order is that of a pivoted QR. F is taken for the
        triangle of a frame, whose rows fall off on the whole; `log_singular_values` is for any.
        """
        C, each = F @ self.Q, np.arange(len(F))[:, None]
        C = np.where(self.mantissa[:, None, :] == 0, 0.0, C)
        columns = descending(self.log2_scale() + log2_abs(np.abs(C).max(axis=1)))
        product = self._factored(C, columns)
        large = ~(np.abs(product.Y).max(axis=(1, 2)) <= U_GROWTH)
        if large.any():
            for b in np.flatnonzero(large):
                scale = self.log2_scale()[b]
                scaled = C[b] * np.exp2(np.maximum(scale - scale.max(), -900.0))
                columns[b] = qr(scaled, mode="r", pivoting=True)[1]
            product = self._factored(C, columns)
        return product._replace(Y=product.Y @ self.Y[each, columns])

    def _factored(self, C: Array, columns: NDArray[np.int64]) -> _Graded:
        """C · diag(d), its columns in this order, as Q · diag(d') · (I + U)."""
        each = np.arange(len(C))[:, None]
        mantissa, exponent = self.mantissa[each, columns], self.exponent[each, columns]
        rows = descending(np.abs(C).max(axis=2))  # Householder QR is then accurate row by row
        q, R = np.linalg.qr(C[each[:, :, None], rows[:, :, None], columns[:, None, :]])
        Q = np.empty_like(q)
        Q[each, rows] = q
        pivots = R.diagonal(axis1=1, axis2=2) * mantissa
        inverse = np.divide(1.0, pivots, out=np.zeros_like(pivots), where=pivots != 0)
        shift = np.clip(exponent[:, None, :] - exponent[:, :, None], -1100, 1000)
        U = np.ldexp(inverse[:, :, None] * R * mantissa[:, None, :], shift)
        fraction, up = np.frexp(pivots)
        return _Graded(Q, fraction, np.where(pivots == 0, 0, exponent + up), U)


def _graded_svd(F: _Graded) -> tuple[Array, Array, Array]:
    """(ln σ [N, m] descending, left [N, m, m], right [N, m, m]) of each product; vectors in columns."""
    N, m = F.mantissa.shape
    values, left, right = np.full((N, m), -np.inf), np.empty((N, m, m)), np.empty((N, m, m))
    for b in range(N):
        rows = descending(F.log2_scale()[b] + log2_abs(np.abs(F.Y[b]).max(axis=1)))
        mantissa, exponent = F.mantissa[b, rows], F.exponent[b, rows]
        Z, R = np.linalg.qr(F.Y[b, rows].T)  # diag(d) Y = diag(d) Rᵀ Zᵀ, the triangle graded by rows
        u, v = np.eye(m), np.eye(m)
        for start, stop in _groups(np.where(mantissa == 0, -np.inf, exponent)):
            base = int(exponent[start]) - max(0, int(exponent[start] - exponent[start:stop].min()) - 900)
            scale = np.ldexp(mantissa[start:stop], np.maximum(exponent[start:stop] - base, -1074))
            block = scale[:, None] * R.T[start:stop, start:stop]
            scaled, v_block, u_block, work, _, _ = dgejsv(np.asfortranarray(block.T), joba=0, jobu=0, jobv=0)
            order = np.argsort(-scaled, kind="stable")
            with np.errstate(divide="ignore"):
                values[b, start:stop] = (np.log(scaled[order]) + np.log(work[0] / work[1])) + base * LN2
            u[start:stop, start:stop], v[start:stop, start:stop] = u_block[:, order], v_block[:, order]
        left[b], right[b] = F.Q[b][:, rows] @ u, Z @ v
        order = descending(values[b])
        values[b], left[b], right[b] = values[b, order], left[b][:, order], right[b][:, order]
    return values, left, right


def _groups(exponent: Array) -> list[tuple[int, int]]:
    """Where rows of descending scale 2^exponent may be cut apart; exact zeros are left out."""
    live = int(np.isfinite(exponent).sum())
    waiting, groups = [(0, live)] if live else [], []
    while waiting:
        start, stop = waiting.pop()
        fall = exponent[start : stop - 1] - exponent[start + 1 : stop]
        spread = exponent[start:stop].max() - exponent[start:stop].min()
        if len(fall) and (fall.max() > SEPARATE_BITS or spread > WINDOW_BITS):
            cut = start + int(np.argmax(fall)) + 1
            waiting += [(start, cut), (cut, stop)]
        else:
            groups.append((start, stop))
    return groups
