"""Property checks for anybody's cell: one call, one table of what holds, what does not, and what could not be checked.

`check_cell` is an assertion, for use in a test of your own cell; its report can be had instead.
"""

from __future__ import annotations

import random
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradlab import checks
from gradlab.original import EPSILON, NoWeightsError, Original, original, repeated
from gradlab.step import Step, as_step
from gradlab.subject import Finding, NotApplicableError, Subject
from gradlab.trajectory import rollout
from gradlab.validation import Array, finite, positive_integer, real_array

_ROWS = 256  # on which a step is repeated: enough for a seldom dropout to strike

# what is checked of the cell itself, and of the step that gradlab makes of it, in this order
_OF_THE_CELL = ("state shape", "hidden state", "repeatable step")
_OF_THE_STEP: dict[str, Callable[[Subject], Finding]] = {
    "batch independence": checks.batch_independence,
    "state parts": checks.state_parts,
    "float64 twin": checks.float64_twin,
    "step Jacobian": checks.step_jacobian,
    "dot test": checks.dot_test,
    "chain rule": checks.chain_rule,
    "determinant": checks.determinant,
    "state gradients": checks.gradients,
    "masked step": checks.masked_step,
    "save and load": checks.save_and_load,
}
# all others look at each sequence for itself, and mean nothing where sequences mix
_NOT_BY_SEQUENCE = ("batch independence", "float64 twin", "save and load")
CHECKS = (*_OF_THE_CELL, *_OF_THE_STEP)


@dataclass(frozen=True)
class Check:
    """One line of a `CheckReport`.

    Attributes:
        name: one of `CHECKS`.
        measured: the deviation, at the place where it is largest beside what is allowed; NaN where there is none.
        allowed: what rounding and truncation may make of it there.
        passed: None where the check was skipped.
        hint: where a check failed, what to look for; where it was skipped, why; and which points were left out.
    """

    name: str
    measured: float
    allowed: float
    passed: bool | None
    hint: str = ""

    @property
    def outcome(self) -> str:
        """One of "passed", "FAILED" and "skipped"."""
        return "skipped" if self.passed is None else "passed" if self.passed else "FAILED"


@dataclass(frozen=True)
class CheckReport:
    """What `check_cell` found; printed, a table.

    Attributes:
        cell: what was checked, in a few words.
        checks: a `Check` for each name of `CHECKS`, in that order.
    """

    cell: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.passed is False)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The names of the checks that could not be made; their hints say why."""
        return tuple(check.name for check in self.checks if check.passed is None)

    def __getitem__(self, name: str) -> Check:
        """Return one check by its name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"the checks are {list(CHECKS)}, got {name!r}")

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the table unless every check that was made passed."""
        if not self.passed:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        counts = f"{len(self.failed)} of {len(CHECKS)} checks failed, {len(self.skipped)} skipped"
        lines = [f"{self.cell}: {counts}", f"{'check':<20}{'measured':>10}{'allowed':>10}  {'outcome':<9}hint"]
        for check in self.checks:
            numbers = "".join(f"{'–' if np.isnan(x) else f'{x:.1e}':>10}" for x in (check.measured, check.allowed))
            hint = textwrap.wrap(check.hint, 68) or [""]
            lines.append(f"{check.name:<20}{numbers}  {check.outcome:<9}{hint[0]}".rstrip())
            lines += [" " * 51 + rest for rest in hint[1:]]
        return "\n".join(lines)


def check_cell(
    cell: Any,
    input_dim: int,
    *,
    state_size: int | None = None,
    inputs: ArrayLike | None = None,
    initial_state: ArrayLike | None = None,
    batch: int = 3,
    steps: int = 6,
    seed: int = 0,
    skip: Collection[str] = (),
    raise_on_failure: bool = True,
) -> CheckReport:
    """Check that a cell is what gradient analysis takes it for, and that its gradients are right.

    ====================  ============================================================================================
    state shape           a step maps [B, n] to [B, n], part by part as `state_size` says
    hidden state          a call leaves nothing behind, in a variable or an attribute, that changes the next
    repeatable step       the same state and input give the same state: no noise
    batch independence    ∂h_t[b]/∂h_{t−1}[b'] = 0 for b ≠ b', in values, gradients, and with a sequence by itself
    state parts           each part of the state is read (a column of J_t is not zero) and is changed by the step
    float64 twin          the float64 step that is analysed is the cell's own step to the rounding of its precision
    step Jacobian         J_t = ∂h_t/∂h_{t−1} is that of central differences, extrapolated
    dot test              u·(J v) = (Jᵀu)·v, forward mode against reverse mode
    chain rule            J_T···J_1 = (J_T···J_{t+1})(J_t···J_1), and uᵀJ_T···J_{t+1} is that of a tape over the loop
    determinant           Σ_i ln σ_i(∂h_T/∂h_t) = Σ_{s>t} ln|det J_s|
    state gradients       ∂L/∂h_t of a loss that reads every state is that of central differences
    masked step           h_t = h_{t−1} and J_t = I, and what follows is as if the step had not been there
    save and load         the step is the same after Keras has saved and loaded the cell
    ====================  ============================================================================================

    Tolerances follow from the cell at hand. Differences bring a bound on their own truncation, rounding and kinks (see
    `gradlab.differences`); of points at a kink of relu, where no derivative is wrong, none is asked for, and the hint
    counts them. Everything else may differ by what a few units in the last place of the inputs and of h_0 do to it. A
    check that does not apply, or that could decide nothing, is reported as skipped, and why.

    The weights are taken as they are: give them values that leave no bias at zero to have all of them looked at. A cell
    without weights is built, in place. Python's, NumPy's and TensorFlow's global generators and `floatx` are not
    touched.

    Args:
        cell: anything that `as_step` takes.
        input_dim: d, the number of features.
        state_size: n; needed for a callable, and only there.
        inputs: x_1 … x_T [B, T, d] to run on, B ≥ 2, for a cell that takes no others; standard normal if None.
        initial_state: h_0 [B, n]; if None, what the cell starts from, and normal numbers of standard deviation ½ added.
        batch: B, at least 2; not with `inputs`.
        steps: T; not with `inputs`.
        seed: draws the inputs, h_0 and the directions that are looked along.
        skip: names of checks to leave out, of `CHECKS`.
        raise_on_failure: whether a check that failed is an error, as a test wants it; or the report is returned.

    Returns:
        `CheckReport`.

    Raises:
        AssertionError: a check failed, and `raise_on_failure`; its message is the table.
        TypeError: something that does not recur.
        ValueError: a callable without `state_size`, a cell that fails on these inputs or leaves the finite numbers, or
            whose initial weights Keras cannot draw in its precision, an unknown name in `skip`, one sequence only.

    Example:
        >>> import gradlab as gl
        >>> report = gl.testing.check_cell(gl.VanillaRNNCell(3, seed=0), input_dim=2)
        >>> report.passed, report.skipped
        (True, ())
        >>> report["step Jacobian"].measured < report["step Jacobian"].allowed < 1e-9
        True
    """
    d, B, T = (positive_integer(*one) for one in (("input_dim", input_dim), ("batch", batch), ("steps", steps)))
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"skip must name checks of {list(CHECKS)}, got {unknown}")
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, T, d)) if inputs is None else finite("inputs", real_array("inputs", inputs))
    if x.ndim != 3 or x.shape[2] != d or len(x) < 2:
        raise ValueError(
            f"inputs must be [batch, time, {d}] with at least two sequences, which must not touch each other, got shape"
            f" {x.shape}"
        )
    with _generators_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = _checked(cell, x, state_size, initial_state, rng, seed, skip)
    if raise_on_failure:
        report.raise_if_failed()
    return report


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave Python's and NumPy's global generators as they were: Keras draws seeds from them for a cell made anew."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _checked(
    cell: Any,
    x: Array,
    state_size: int | None,
    initial: ArrayLike | None,
    rng: np.random.Generator,
    seed: int,
    skip: Collection[str],
) -> CheckReport:
    """Return the report; the steps of a cell that is random or remembers are not made, since they have no Jacobian."""
    own = _original(cell, x.shape[2], state_size)
    found = _of_the_cell(own, x, rng, skip)
    if found["state shape"].passed is False and np.isnan(found["state shape"].measured):
        as_step(cell, input_size=x.shape[2], state_size=state_size)  # which may know better why the cell fails
    name = type(own.cell).__name__ if hasattr(own.cell, "state_size") else getattr(own.cell, "__name__", "a callable")
    bad = [one.name for one in found.values() if one.passed is False]
    if bad:
        reason = f"needs a cell that passes: {', '.join(bad)}"
        return _report(name, {**found, **{one: _skipped(one, reason) for one in _OF_THE_STEP}})
    subject = _subject(cell, own, x, state_size, initial, rng, seed)
    for one, check in _OF_THE_STEP.items():
        mixing = found.get("batch independence")
        if one in skip:
            found[one] = _skipped(one, "left out by the caller")
        elif mixing is not None and mixing.passed is False and one not in _NOT_BY_SEQUENCE:
            found[one] = _skipped(one, "needs sequences that do not touch each other")
        else:
            found[one] = _made(one, partial(check, subject))
    return _report(subject.step.description, found)


def _report(name: str, found: dict[str, Check]) -> CheckReport:
    return CheckReport(name, tuple(found[one] for one in CHECKS))


def _skipped(name: str, reason: str) -> Check:
    return Check(name, float("nan"), float("nan"), None, reason)


def _made(name: str, check: Callable[[], Finding]) -> Check:
    """Return the outcome of a check; what the cell raises in it is a failure."""
    try:
        measured, allowed, hint, note = check()
    except NotApplicableError as reason:
        return _skipped(name, str(reason))
    except Exception as error:  # a stranger's cell may raise anything
        message = textwrap.shorten(f"it raised {type(error).__name__}: {error}", 250, placeholder=" …")
        return Check(name, float("nan"), float("nan"), False, message)
    passed = bool(measured <= allowed)
    return Check(name, measured, allowed, passed, "; ".join(one for one in ("" if passed else hint, note) if one))


def _original(cell: Any, d: int, state_size: int | None) -> Original:
    """Return the cell as its author wrote it, or raise what `as_step` has to say of it."""
    if isinstance(cell, Step):
        return Original(cell.__call__, (cell.state_size,), "float64", EPSILON["float64"])
    try:
        return original(cell, d, state_size)
    except NoWeightsError:  # as_step would only see a cell that is half built
        raise
    except Exception:
        as_step(cell, input_size=d, state_size=state_size)
        raise


def _of_the_cell(own: Original, x: Array, rng: np.random.Generator, skip: Collection[str]) -> dict[str, Check]:
    """Return the checks of the cell itself, called as its author wrote it."""
    h = 0.5 * rng.standard_normal((_ROWS, sum(own.sizes)))
    rows = x.reshape(-1, x.shape[2])[np.arange(_ROWS) % (x.shape[0] * x.shape[1])]
    shape, hidden, repeatable = _OF_THE_CELL
    found = {shape: _made(shape, lambda: checks.state_shape(own, h, rows))}
    if found[shape].passed:
        found |= _of_two_calls(own, h, rows)
    else:
        found |= {name: _skipped(name, f"needs a cell that passes: {shape}") for name in (hidden, repeatable)}
    return found | {name: _skipped(name, "left out by the caller") for name in _OF_THE_CELL if name in skip}


def _of_two_calls(own: Original, h: Array, x: Array) -> dict[str, Check]:
    """Return the two checks that the same call twice decides: what differs was remembered, or else was drawn."""
    _, hidden, repeatable = _OF_THE_CELL
    try:
        first, again, changed = repeated(own, h, x)
    except Exception as error:  # a stranger's cell may raise anything
        raise ValueError(f"the cell fails when it is called a second time: {error}") from error
    finding = checks.repetition(own, first, again)
    if finding.measured <= finding.allowed:
        return {name: _made(name, lambda: finding) for name in (hidden, repeatable)}
    if changed:
        hint = f"a call changes {', '.join(changed)}, which the next one reads; make it a part of the state"
        return {
            hidden: _made(hidden, lambda: finding._replace(hint=hint)),
            repeatable: _skipped(repeatable, "a hidden state changes from call to call"),
        }
    hint = "noise or dropout at each call (call it with training=False), or something is remembered out of sight"
    return {
        hidden: _skipped(hidden, "cannot be told from noise"),
        repeatable: _made(repeatable, lambda: finding._replace(hint=hint)),
    }


def _subject(
    cell: Any,
    own: Original,
    x: Array,
    state_size: int | None,
    initial: ArrayLike | None,
    rng: np.random.Generator,
    seed: int,
) -> Subject:
    """Return the run to be checked, in the order in which the cell reads it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = as_step(cell, input_size=x.shape[2], state_size=state_size)
    warned = "; ".join(str(one.message) for one in caught if issubclass(one.category, UserWarning))
    step = replace(step, go_backwards=False, stateful=False)
    if initial is None:
        start = np.zeros(step.state_size) if step.initial_state is None else step.initial_state
        initial = start + 0.5 * rng.standard_normal((len(x), step.state_size))
    traj = rollout(step, x, initial)
    return Subject(own, step, warned, isinstance(cell, Step), traj.inputs, traj.states[:, 0], seed)
