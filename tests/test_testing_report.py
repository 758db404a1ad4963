"""The report of `check_cell`: its table, what it leaves alone, and what it cannot look at."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import FEATURES, UNITS, ready, rotating
from faulty_cells import NeverReadsC, Noisy

from gradlab.cells import VanillaRNNCell
from gradlab.testing import CHECKS, check_cell


def report_of(cell, *, features=FEATURES, **options):
    return check_cell(cell, features, raise_on_failure=False, **options)


def test_a_failure_is_an_assertion_error_with_the_table():
    with pytest.raises(AssertionError, match=r"(?s)Noisy.*repeatable step .*FAILED +noise or dropout"):
        check_cell(Noisy(UNITS), FEATURES)
    report = report_of(Noisy(UNITS))
    with pytest.raises(AssertionError, match="1 of 13 checks failed, 11 skipped"):
        report.raise_if_failed()
    assert not report.passed
    assert "needs a cell that passes: repeatable step" in report["dot test"].hint
    check_cell(ready("lstm"), FEATURES).raise_if_failed()


def test_the_table_has_a_line_for_each_check():
    report = report_of(rotating, state_size=UNITS)
    assert tuple(check.name for check in report.checks) == CHECKS
    lines = str(report).splitlines()
    assert lines[0] == "rotating: 0 of 13 checks failed, 2 skipped"
    assert lines[1].split() == ["check", "measured", "allowed", "outcome", "hint"]
    for check in report.checks:
        (line,) = (line for line in lines if line.startswith(check.name + " "))
        assert {None: "skipped", True: "passed", False: "FAILED"}[check.passed] in line
    assert all(len(line) <= 120 for line in lines)
    with pytest.raises(KeyError, match="the checks are"):
        report["determinants"]


def test_a_check_may_be_left_out():
    report = check_cell(NeverReadsC(UNITS), FEATURES, skip=("state parts",))
    assert report["state parts"].passed is None
    assert report["state parts"].hint == "left out by the caller"
    with pytest.raises(ValueError, match=r"skip must name checks of .* got \['state part'\]"):
        check_cell(NeverReadsC(UNITS), FEATURES, skip=("state part",))


def test_the_seed_decides_every_number_and_global_generators_are_left_alone():
    def draws():
        return random.random(), np.random.rand(), tf.random.normal(()).numpy(), keras.random.normal(()).numpy()  # noqa: NPY002

    cells = {name: ready(name) for name in ("lstm", "custom")}

    def drawn_after(action):
        keras.utils.set_random_seed(11)
        action()
        return draws()

    try:
        expected = drawn_after(lambda: None)
        for cell in cells.values():
            before = [w.copy() for w in cell.get_weights()]
            reports = []
            assert drawn_after(lambda cell=cell, reports=reports: reports.append(report_of(cell, seed=5))) == expected
            assert report_of(cell, seed=5) == reports[0]
            assert report_of(cell, seed=6) != reports[0]
            assert all(map(np.array_equal, before, cell.get_weights()))
        assert keras.config.floatx() == "float32"
    finally:
        keras.utils.set_random_seed(int(np.random.SeedSequence().generate_state(1)[0]))


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        (VanillaRNNCell, {}, TypeError, "got the class VanillaRNNCell"),
        (keras.layers.Dense(3), {}, TypeError, "cell must recur"),
        (None, {}, TypeError, "got None"),
        (rotating, {}, ValueError, "a callable says nothing about its state"),
        (VanillaRNNCell(3), {"features": 0}, ValueError, "input_dim must be at least 1"),
        (VanillaRNNCell(3), {"batch": 1}, ValueError, "at least two sequences"),
        (VanillaRNNCell(3), {"inputs": np.zeros((2, 4, 5))}, ValueError, r"inputs must be \[batch, time, 2\]"),
        (ready("lstm"), {"features": 5}, ValueError, "was built for 2"),
        (lambda h, x: tf.exp(1e3 * h), {"state_size": 2}, ValueError, "left the finite numbers"),
    ],
    ids=["class", "dense", "none", "callable", "dim", "batch", "inputs", "built", "explodes"],
)
def test_what_cannot_be_checked_is_an_error(cell, options, error, message):
    with pytest.raises(error, match=message):
        report_of(cell, **options)
