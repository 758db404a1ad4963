"""What must hold of a step, one function per property: each returns what was measured and what rounding allows.

Allowances come from the step itself: what rounding does along the run (`gradlab.subject`), and the bound that
differences bring with them (`gradlab.differences`).
"""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf

from gradlab.differences import Derivative, Integers, directional_derivatives, rounding
from gradlab.gradients import state_gradients
from gradlab.jacobian import step_jacobians
from gradlab.original import Original, built_by_a_call, saved_and_loaded
from gradlab.products import log_singular_values
from gradlab.step import Step
from gradlab.subject import ROOM, Finding, NotApplicableError, Subject, first_line, worst
from gradlab.trajectory import rollout
from gradlab.validation import Array

_COPY_ULPS = 4.0  # a copy computes by the same operations in the same order
_COLUMNS = 16  # beyond this many units, random directions instead of every one
# a difference that cannot tell a wrong derivative from a right one to this part of its size is no test
_RESOLVED = 1e-3
_ZERO = tf.UnconnectedGradients.ZERO
_NOTHING = 1e-6  # and what is smaller than this throughout is no different from zero


# --- one function per check ------------------------------------------------------------------------------------------


def state_shape(own: Original, h: Array, x: Array) -> Finding:
    """A step returns the state in the parts that it came in."""
    sizes = [tuple(part.shape) for part in own.parts(h, x)]
    expected = [(len(h), size) for size in own.sizes]
    missing = abs(sum(size[-1] if size else 0 for size in sizes) - sum(own.sizes))
    hint = f"the state has parts of shapes {expected}, and the step returns {sizes}"
    return Finding(float(max(missing, sizes != expected)), 0.0, hint)


def repetition(own: Original, first: Array, again: Array) -> Finding:
    """The same state and input give the same state."""
    with np.errstate(invalid="ignore"):
        gap = np.where((first == again) | (np.isnan(first) & np.isnan(again)), 0.0, np.abs(first - again))
    size = float(np.abs(first[np.isfinite(first)]).max(initial=1.0))
    return Finding(float(gap.max()), _COPY_ULPS * own.eps * size)


def state_parts(s: Subject) -> Finding:
    """Each part of the state changes what the step returns, and is changed by it, somewhere along the run."""
    h, x = s.points()
    new, rng = _stepped(s.step, h, x), s.rng
    unread, kept = [], []
    identity = np.eye(h.shape[1])
    for part in s.step.parts:
        cut = slice(part.start, part.stop)
        moved = h.copy()
        moved[:, cut] += 0.5 * rng.standard_normal(moved[:, cut].shape)
        # units so saturated that no value changes have a slope all the same
        if np.array_equal(_stepped(s.step, moved, x), new) and not s.J[..., cut].any():
            unread.append(part.name)
        # nor does a gate that rounds to 1 change any; its slope is in J all the same, beside what it keeps
        if np.array_equal(new[:, cut], h[:, cut]) and (s.J[..., cut, :] == identity[cut]).all():
            kept.append(part.name)
    hints = [f"on this run the step never {verb} {names}" for verb, names in (("reads", unread), ("changes", kept))]
    hint = "; ".join(hint for hint, names in zip(hints, (unread, kept), strict=True) if names)
    hint += ": no state then, or gates are saturated to the last digit in every step"
    return Finding(float(len({*unread, *kept})), 0.0, hint)


def batch_independence(s: Subject) -> Finding:
    """∂h_t[b]/∂(h_{t−1}, x_t)[b'] = 0 for b ≠ b', in gradients, in values, and against each sequence by itself."""
    h, x = s.traj.states[:, 0], s.traj.inputs[:, 0]
    others = ~np.eye(len(h), dtype=bool)
    new = _stepped(s.step, h, x)
    rng = s.rng
    changes = np.zeros((len(h), len(h)))
    for b in range(len(h)):
        moved_h, moved_x = h.copy(), x.copy()
        moved_h[b] += 0.5 * rng.standard_normal(h.shape[1])
        moved_x[b] += 0.5 * rng.standard_normal(x.shape[1])
        changes[b] = np.abs(_stepped(s.step, moved_h, moved_x) - new).max(axis=1)
    slack = s.run_eps * max(1.0, float(np.abs(new).max()))
    gradients = worst(_cross_gradients(s, h, x)[others], 0.0)
    values = worst(changes[others], slack)
    alone = _alone(s)
    for (measured, allowed), hint in (
        (values, "one sequence changes what another becomes: a mean, a norm or a reshape across axis 0?"),
        (gradients, "the gradient of one sequence reaches another: a custom gradient that sums over axis 0?"),
        (alone, "a sequence by itself runs otherwise than in a batch: a mean, or a row index, over axis 0?"),
    ):
        if not measured <= allowed:
            return Finding(measured, allowed, hint)
    return Finding(*values)


def _stepped(step: Step, state: Array, inputs: Array) -> Array:
    """Return h_t from h_{t−1} and x_t as arrays."""
    return step(tf.constant(state), tf.constant(inputs)).numpy()


def _cross_gradients(s: Subject, h: Array, x: Array) -> Array:
    """Return max |∂(u·h_t[b])/∂(h_{t−1}, x_t)[b']| for a random u, [B, B]."""
    state, inputs = tf.constant(h), tf.constant(x)
    u = tf.constant(s.rng.standard_normal(h.shape))
    try:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch((state, inputs))
            each = tf.unstack(tf.reduce_sum(u * s.step(state, inputs), axis=1))
        rows = [tape.gradient(one, (state, inputs), unconnected_gradients=_ZERO) for one in each]
    except Exception:  # a stranger's gradient may raise anything, and the check of the step Jacobian says so
        return np.zeros((len(h), len(h)))
    return np.array([np.maximum(*(np.abs(part.numpy()).max(axis=1) for part in row)) for row in rows])


def _alone(s: Subject) -> tuple[float, float]:
    """Return (how far the last sequence, run by itself, is from itself in the batch, allowed)."""
    traj = rollout(s.step, s.inputs[-1:], s.initial[-1:])
    ours, echoed = s.traj.states[-1], s.echo.states[-1]
    states = float(np.abs(traj.states[0] - ours).max()), s.rounding(ours, echoed)
    try:
        J = float(np.abs(s.jacobians(traj)[0] - s.J[-1]).max()), s.rounding(s.J[-1], s.J_echo[-1])
    except NotApplicableError:  # the check of the step Jacobian says so
        return states
    return worst(*np.transpose([states, J]))


def float64_twin(s: Subject) -> Finding:
    """The step that is analysed is the cell's own, to the rounding of the cell's precision."""
    if s.given:
        raise NotApplicableError("a Step was given, and not the cell that it is of")
    if s.warned:
        return Finding(float("nan"), float("nan"), s.warned)
    if not s.own.is_layer:
        raise NotApplicableError("this is no Keras layer: it is called with float64 tensors, and no twin is made")
    h, x = (s.own.rounded(one) for one in s.points())
    own = s.own(h, x)
    noise = rounding(lambda states, which: s.own(states, x[which]), h, s.own.eps, s.rng)[:, None]
    _, _, d, n = s.shape
    allowed = noise + s.own.eps * (n + d + 20) * np.maximum(1.0, np.abs(own).max())
    return Finding(*worst(np.abs(own - _stepped(s.step, h, x)), allowed), "get_config() leaves a setting out?")


def step_jacobian(s: Subject) -> Finding:
    """J_t v is the derivative of the step along v, by central differences."""
    h, x = s.points()
    N, n = h.shape
    rng = s.rng
    v = np.eye(n) if n <= _COLUMNS else rng.standard_normal((_COLUMNS, n)) / np.sqrt(n)
    J = step_jacobians(s.traj)
    routes = [J, step_jacobians(s.traj, method="autodiff")]
    found = directional_derivatives(lambda states, which: _stepped(s.step, states, x[which]), h, v, s.eps, rng)
    expected = [np.einsum("nij,kj->nki", one.reshape(N, n, n), v) for one in routes]
    finding = _against(found, np.stack(expected))
    allowed = finding.allowed + n * s.jacobian_rounding
    return finding._replace(allowed=allowed, hint="a wrong tf.custom_gradient, or tf.stop_gradient?")


def _against(found: Derivative, expected: Array) -> Finding:
    """Compare derivatives [routes, N, K, m] with differences at the points where these resolve anything."""
    # not of the size of what is expected, which may be wrong; and differences of what varies faster than their spacing
    # are as uncertain as they are large
    size = np.maximum(_NOTHING, np.abs(found.value).max(axis=(1, 2)))
    resolved = found.error <= _RESOLVED * size
    note = "" if resolved.all() else f"{int((~resolved).sum())} of {len(resolved)} points, at a kink, left out"
    if not resolved.any():
        raise NotApplicableError("differences resolve nothing: every point lies at or near a kink")
    wrong = np.abs(expected - found.value)[:, resolved].max(axis=(0, 2, 3))
    return Finding(*worst(wrong, found.error[resolved]), note=note)


def dot_test(s: Subject) -> Finding:
    """u·(J v) by forward mode = (Jᵀu)·v by reverse mode, for u of sizes far apart."""
    h, x = (tf.constant(one) for one in s.points())
    N, n = h.shape
    change = np.abs(s.J - s.J_echo).reshape(N, n, n)
    rng = s.rng
    v, u = rng.standard_normal((2, N, n))
    u *= 2.0 ** rng.choice([-20, 0, 20], size=(N, 1))
    try:
        with tf.autodiff.ForwardAccumulator(h, tf.constant(v)) as forward:
            pushed = forward.jvp(s.step(h, x), unconnected_gradients=_ZERO).numpy()
    except Exception as error:  # an operation without a forward derivative may raise anything
        raise NotApplicableError(f"TensorFlow has no forward mode for this step: {first_line(error)}") from error
    with tf.GradientTape() as tape:
        tape.watch(h)
        new = s.step(h, x)
    pulled = tape.gradient(new, h, output_gradients=tf.constant(u), unconnected_gradients=_ZERO).numpy()
    allowed = s.jacobian_rounding * np.abs(u).sum(axis=1) * np.abs(v).sum(axis=1)
    allowed += ROOM * np.einsum("ni,nij,nj->n", np.abs(u), change, np.abs(v))
    wrong = np.abs((u * pushed).sum(axis=1) - (pulled * v).sum(axis=1))
    return Finding(*worst(wrong, allowed), "a gradient that is not linear in what comes from above (clipped, rounded)?")


def chain_rule(s: Subject) -> Finding:
    """J_T···J_1 = (J_T···J_{t+1})(J_t···J_1) for every t, and uᵀJ_T···J_{t+1} is that of a tape over the loop."""
    u = s.rng.standard_normal(s.initial.shape)
    rows, echoed = (_rows(u, J) for J in (s.J, s.J_echo))
    # an entry of J_t is right to `jacobian_rounding` by either route, which is much beside a saturated slope
    sizes, larger = (_rows(np.abs(u), np.abs(s.J) + extra).max(axis=2) for extra in (0.0, s.jacobian_rounding))
    taped = worst(
        np.abs(_unrolled(s, u) - rows).max(axis=2),
        ROOM * np.abs(rows - echoed).max(axis=2) + s.run_eps * sizes + (larger - sizes),
    )
    split = _split_error(s)
    if not split[0] <= split[1]:
        return Finding(*split, "the products of the step Jacobians do not agree with each other")
    return Finding(*taped, "the loop's gradient is not made of the step Jacobians: a path from step to step beside h?")


def _rows(u: Array, J: Array) -> Array:
    """Return uᵀJ_T ··· J_{t+1} for t = 0 … T−1, [B, T, n]."""
    rows = []
    for t in reversed(range(J.shape[1])):
        u = np.einsum("bi,bij->bj", u, J[:, t])
        rows.append(u)
    return np.stack(rows[::-1], axis=1)


def _unrolled(s: Subject, u: Array) -> Array:
    """Return uᵀ ∂h_T/∂h_t for t = 0 … T−1 from one tape over the loop, [B, T, n]."""
    states = [tf.constant(s.initial)]
    with tf.GradientTape() as tape:
        tape.watch(states[0])
        for t in range(s.shape[1]):
            states.append(s.step(states[-1], tf.constant(s.traj.inputs[:, t])))
    gradients = tape.gradient(states[-1], states[:-1], output_gradients=tf.constant(u), unconnected_gradients=_ZERO)
    return np.stack([one.numpy() for one in gradients], axis=1)


def _split_error(s: Subject) -> tuple[float, float]:
    """Return (how far the product in two parts is from the product, allowed)."""
    B, T, _, n = s.shape
    until, size = [np.broadcast_to(np.eye(n), (B, n, n))], np.broadcast_to(np.eye(n), (B, n, n))
    for t in range(T):
        until.append(s.J[:, t] @ until[-1])
        size = np.abs(s.J[:, t]) @ size
    after, wrong = np.broadcast_to(np.eye(n), (B, n, n)), []
    for t in reversed(range(T)):
        after = after @ s.J[:, t]
        wrong.append(np.abs(after @ until[t] - until[T]))
    return worst(np.stack(wrong), 2.0**-52 * 2 * n * T * size.max(axis=(1, 2), keepdims=True))


def determinant(s: Subject) -> Finding:
    """Σ_i ln σ_i(P_t) = Σ_{s>t} ln|det J_s|."""
    _, _, _, n = s.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps singular to rounding, which are left out here
        ln_s, error = log_singular_values(s.J, return_error=True)
    singular = np.linalg.svd(s.J, compute_uv=False)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        left, right = ln_s.sum(axis=2), _backwards(np.linalg.slogdet(s.J)[1])
        # |δ ln det| = |tr(J⁻¹δJ)| ≤ n ‖J⁻¹‖ ‖δJ‖, and elimination errs by n·eps·‖J‖ in norm, with room for growth
        allowed = error.sum(axis=2) + _backwards(4.0 * n**2 * 2.0**-52 * (1.0 + singular[..., 0] / singular[..., -1]))
        wrong = np.where(left == right, 0.0, np.abs(left - right))
    resolved = allowed <= _RESOLVED
    if not resolved.any():
        raise NotApplicableError("the step Jacobians are singular to rounding, and have no determinant to compare")
    return Finding(*worst(wrong[resolved], allowed[resolved]), "ill-conditioned step Jacobians; please report it")


def _backwards(values: Array) -> Array:
    """Return Σ_{s>t} of values [B, T], [B, T] at t = 0 … T−1."""
    return np.cumsum(values[:, ::-1], axis=1)[:, ::-1]


def gradients(s: Subject) -> Finding:
    """∂L/∂h_t · v is the derivative of L along v, all later states run anew, by central differences."""
    B, T, _, n = s.shape
    rng = s.rng
    c, phase, v = (rng.standard_normal(shape) / np.sqrt(n) for shape in ((T + 1, n), T + 1, (min(n, 4), n)))
    c /= np.maximum(1.0, np.abs(s.traj.states).max(axis=(0, 2)))[:, None]  # or it turns too fast to be differenced

    def loss(states: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.sin(tf.reduce_sum(states * c, axis=-1) + phase), axis=-1)

    _ = s.J  # or there is nothing to compare
    g = state_gradients(s.traj, None, loss).total

    def loss_from(states: Array, which: Integers) -> Array:
        return loss(tf.constant(_continued(s, states, which))).numpy()[:, None]

    points = s.traj.states.reshape(B * (T + 1), n)
    found = directional_derivatives(loss_from, points, v, s.eps, rng)
    expected = (g.reshape(-1, n) @ v.T)[None, :, :, None]
    return _against(found, expected)._replace(hint="follows from a wrong step Jacobian; if that is right, report it")


def _continued(s: Subject, states: Array, which: Integers) -> Array:
    """Return the runs [M, T+1, n] in which the state with index b·(T+1) + t is `states` [M, n]."""
    _, T, _, _ = s.shape
    b, t = np.divmod(which, T + 1)
    run = s.traj.states[b]
    run[np.arange(len(run)), t] = states
    for k in range(T):
        later = t <= k
        run[later, k + 1] = _stepped(s.step, run[later, k], s.traj.inputs[b[later], k])
    return run


def masked_step(s: Subject) -> Finding:
    """A masked step carries the state over, has J = I, and changes nothing after it, whatever its input."""
    _, T, _, n = s.shape
    if T == 1:
        raise NotApplicableError("needs two steps, one of them to be left out")
    keep = np.arange(T) % 3 != 1
    inputs = s.traj.inputs.copy()
    inputs[:, ~keep] = s.rng.standard_normal(inputs[:, ~keep].shape)
    masked = rollout(s.step, inputs, s.initial, np.broadcast_to(keep, inputs.shape[:2]))
    short, echo = (rollout(s.step, one.inputs[:, keep], one.states[:, 0]) for one in (s.traj, s.echo))
    kept = np.concatenate([[True], keep])
    found = [
        (np.abs(masked.states[:, 1:] - masked.states[:, :-1])[:, ~keep].max(), 0.0),
        (np.abs(masked.states[:, kept] - short.states).max(), s.rounding(short.states, echo.states)),
    ]
    J, J_short, J_echo = (s.jacobians(one) for one in (masked, short, echo))
    found.append((np.abs(J[:, ~keep] - np.eye(n)).max(), 0.0))
    found.append((np.abs(J[:, keep] - J_short).max(), s.rounding(J_short, J_echo)))
    return Finding(
        *worst(*(np.array(one) for one in zip(*found, strict=True))), "no cell can do that; please report it"
    )


def save_and_load(s: Subject) -> Finding:
    """A cell saved by Keras and loaded again has the same step, in its own precision."""
    if s.given:
        raise NotApplicableError("a Step was given, and not the cell that it is of")
    if not s.own.is_layer:
        raise NotApplicableError("this is no Keras layer, and Keras does not save it")
    h, x = s.points()
    try:
        loaded = saved_and_loaded(s.own, s.shape[2])
    except Exception as error:  # a stranger's configuration may raise anything
        late = built_by_a_call(s.own, s.shape[2])
        if not late:
            raise
        raise NotApplicableError(
            f"Keras saves this cell and cannot load it: {', '.join(late)} inside it gets weights at the first call"
            " only, which loading does not make. Build it in the cell's own build(), and this can be checked"
        ) from error
    before = s.own(h, x)
    allowed = _COPY_ULPS * s.own.eps * max(1.0, float(np.abs(before).max()))
    hint = "get_config() or save_own_variables() leaves something out, or a weight is no Keras weight?"
    return Finding(*worst(np.abs(loaded(h, x) - before), allowed), hint)
