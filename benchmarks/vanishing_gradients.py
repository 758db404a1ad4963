"""The vanishing gradient, the classical demonstration: three claims on trial, the answer whichever way it falls.

A simple tanh network (`gl.VanillaRNNCell`, W_ij ~ N(0, 1/n)) learns with categorical cross-entropy and Adam, unclipped,
(a) a task with a long dependency, temporal order, and (b) digits of 8×8 pixels, one pixel a step. Looked at over the
epochs are ‖∂L/∂h_t‖ at every step, loss, accuracy, saturation, and the decay budget. Claimed is: gradients shrink with
distance; the loss stagnates; saturation makes it worse. What would support and what refute each is fixed beforehand, in
`vanishing_gradients_report.py`, with thresholds. Beside each network, from the same seed, are trained one on the same
task with a short distance, and an LSTM at the long one, so that what is said is of the distance and not of the task.

The length of temporal order was chosen by one trial, with a seed that is not among those here: at 60 steps the tanh
network guessed for 30 epochs, at 30 it learnt, and so did an LSTM at 60.

Every seed is an independent network with data and batches of its own; intervals are over seeds. Writes to --out: the
dataset (.nc), the tests (.csv), figures (.pdf, .png) of each task and of the claims, and the provenance with the
numbers and the sentences (.json). Every finished run is kept under vanishing_gradients_runs/, and skipped by --resume
if the code that made it is the present one.

    python benchmarks/vanishing_gradients.py --workers 2    # at most 10 minutes on 2 cores
    python benchmarks/vanishing_gradients.py --quick        # less than a minute, too few networks for intervals
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from environment import environment
from vanishing_gradients_figures import draw
from vanishing_gradients_report import answers, judged, sentences
from vanishing_gradients_runs import collect

import gradlab as gl
from gradlab.record import command_line, out_folder, write_record
from gradlab.results import SCHEMA_VERSION, provenance, write_text_atomically

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is imported by the first run, and talks

NAME = "vanishing_gradients"


@dataclass(frozen=True)
class Problem:
    """A task at a long and at a short distance.

    Attributes:
        far: fields of `gl.Experiment` for the long distance.
        near: for the short one.
        classes: C.
    """

    far: dict[str, Any]
    near: dict[str, Any]
    classes: int


PROBLEMS = {
    "temporal order": Problem({"data": "temporal_order", "length": 60}, {"data": "temporal_order", "length": 10}, 4),
    "digits": Problem({"data": "digits"}, {"data": "digits_rows"}, 10),
}
FULL = {"seeds": 8, "epochs": 24, "units": 32}
QUICK = {"seeds": 1, "epochs": 3, "units": 12}
LOOKS = 9  # at the network during training


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, f"a small version for a first look: {QUICK}"))
    parser.add_argument("--tasks", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="default: all")
    what = {"seeds": "networks of each kind", "epochs": "of training", "units": "n"}
    for name, meaning in what.items():
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} (default: {FULL[name]}; quick: {QUICK[name]})")
    parser.add_argument("--length", type=int, help="T of temporal order at the long distance (default: 60)")
    parser.add_argument("--samples", type=int, help="training sequences of temporal order (default: 2000; quick: 500)")
    parser.add_argument("--animate", action="store_true", help="write the spectrum over training of one network, a GIF")
    parser.add_argument("--workers", type=int, help="make the runs in this many processes (default: in this one)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the runs under --out that are finished and were made by the present version and commit",
    )
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("seeds", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.epochs < 2:
        parser.error(f"--epochs must be at least 2, for a loss to fall, got {options.epochs}")
    return options


def looks_at(epochs: int) -> tuple[int, ...]:
    """Return the epochs after which a network is looked at: the first and the last, and more of the early ones."""
    return tuple(sorted({round(epochs * (i / (LOOKS - 1)) ** 1.6) for i in range(LOOKS)}))


def experiments(options: argparse.Namespace) -> list[tuple[str, str, gl.Experiment]]:
    """Return (task, role, run) of everything that is asked for."""
    found = []
    for task in dict.fromkeys(options.tasks):
        problem = PROBLEMS[task]
        far, near = dict(problem.far), dict(problem.near)
        if "length" in far:  # drawn, not read
            far |= {"length": options.length or (30 if options.quick else far["length"])}
            far, near = (one | {"samples": options.samples or (500 if options.quick else None)} for one in (far, near))
        for replicate in range(options.seeds):
            # the three networks of a seed are compared with each other; between tasks nothing is shared
            seed = int(np.random.SeedSequence([replicate, *task.encode()]).generate_state(1)[0] >> 1)
            shared = {"seed": seed, "units": options.units, "epochs": options.epochs, "clip_norm": None}
            shared |= {"measured_at": looks_at(options.epochs), "probes": 4 if options.quick else 8}
            for role, cell, where, measured in (
                ("far", "tanh", far, ("analysis", "slopes", "tracking")),
                ("near", "tanh", near, ("tracking",)),
                ("lstm", "lstm", far, ("tracking",)),
            ):
                found.append((task, role, gl.Experiment(cell, **shared, **where, measured=measured)))
    return found


def main() -> None:
    """Run, collect, write, print."""
    options, started = arguments(), time.perf_counter()
    try:
        wanted = experiments(options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{NAME}.py: {error}") from None
    if options.resume and provenance()["dirty"] is True:
        print("--resume: the tree is dirty; runs of its commit are kept, whatever changed since", file=sys.stderr)
    runs = options.out / f"{NAME}_runs"
    try:
        swept = gl.sweep(
            [one for *_, one in wanted], runs, workers=options.workers, reuse="same-code" if options.resume else "none"
        )
    except (gl.StoreError, ConnectionError, ImportError) as error:
        raise SystemExit(f"{NAME}.py: {error}") from None
    made = [(task, role, swept.store.load(one)) for task, role, one in wanted if one not in swept.failed]
    if not any(role == "far" for _, role, _ in made):
        raise SystemExit(f"{NAME}.py: every run failed; the tracebacks are in {runs}")
    names, roles, found = zip(*made, strict=True)
    ds = collect(found, names, roles, [PROBLEMS[task].classes for task in names])
    ds.attrs |= provenance() | {"schema_version": SCHEMA_VERSION, "title": "Vanishing gradients: three claims on trial"}
    stem = options.out / f"{NAME}{'_quick' if options.quick else ''}"
    gl.save(ds, stem.with_suffix(".nc"))  # before anything that may fail: the report can be made again from it
    tests = judged(ds)
    spoken, verdicts = sentences(ds, tests), answers(ds, tests)
    write_text_atomically(stem.with_suffix(".csv"), tests.to_csv(index=False, float_format="%.6g"))
    record = {
        "environment": environment() | {"wall_seconds": round(time.perf_counter() - started, 1)},
        "settings": {name: getattr(options, name) for name in ("tasks", *FULL)},
        "runs": len(made),
        "reused": swept.kept,
        "failed": {one.key: why for one, why in swept.failed.items()},
        "not_measured": ds.attrs["failures"],
        "experiments": json.loads(ds.attrs["experiments"]),
        "verdicts": verdicts,
        "tests": tests.astype(object).where(tests.notna(), None).to_dict(orient="records"),
        "sentences": spoken,
    }
    write_record(record, stem.with_suffix(".json"))
    draw(ds, tests, stem)
    if options.animate:
        from gradlab.tracking_dataset import tracked  # with TensorFlow

        _, _, first = next(one for one in made if one[1] == "far")
        gl.plot.animate_spectrum(tracked(first), stem.with_name(f"{stem.name}_spectrum.gif"))
    shown = tests[["task", "claim", "test", "estimate", "low", "high", "claimed", "threshold", "networks", "verdict"]]
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="—"))
    print("\n" + "\n".join(spoken) + "\n")
    print(pd.DataFrame(verdicts).T.to_string())
    if swept.failed:
        print(f"\n{len(swept.failed)} runs failed and are missing above; --resume tries them again:", file=sys.stderr)
        for one, why in swept.failed.items():
            print(f"  {one.key}: {why}", file=sys.stderr)
    seconds = record["environment"]["wall_seconds"]
    print(f"\n{len(made)} runs ({swept.kept} reused) in {seconds:.0f} s; written to {stem}*")
    if swept.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
