"""The fixes on trial: does the gradient reach back, does the task get solved, and what does it cost?

Naive tanh against what has been proposed: ReLU, the identity, orthogonal and Xavier matrices, a penalty on steps that
change the gradient's norm (Ω), gradient flossing, leaky and residual updates, gates (LSTM with three forget biases,
GRU); and tanh with too large a matrix against clipping by norm and by value. Every network has about as many parameters
as every other, and network i of every fix has the same data, order of batches and stream of initial weights, so that
fixes are compared in pairs. All train on temporal order (Hochreiter & Schmidhuber 1997; Pascanu et al. 2013) with Adam.
Every fix has one setting, that of its source or of Keras where these name one, and none was tuned; length and duration
of training were chosen so that some settings solve the task and others do not. Writes to --out: the numbers of every
network (.nc), the table (.csv), the figure (.pdf, .png) and the record with the summary (.json); every finished run is
kept under runs/, a store of `gradlab.sweep`, and skipped by --resume if the present code made it.

    python benchmarks/fixes_compared.py --workers 2   # at most 10 minutes on 2 cores
    python benchmarks/fixes_compared.py --quick       # less than a minute: 5 settings, too few networks for intervals
    python benchmarks/fixes_compared.py --plot-only   # table and figure again from the .nc
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported, which talks

from environment import environment
from fixes_compared_figure import draw
from fixes_compared_networks import FIXES, LARGE, NAIVE, experiments
from fixes_compared_report import collect, sentences, summarise, table

import gradlab as gl
from gradlab.record import command_line, out_folder, path_of, write_record
from gradlab.results import SCHEMA_VERSION, write_text_atomically

NAME = "fixes_compared"
FULL = {"seeds": 7, "units": 32, "length": 50, "samples": 1280, "epochs": 10}
QUICK = {"seeds": 2, "units": 12, "length": 20, "samples": 300, "epochs": 2}
QUICK_FIXES = [NAIVE, "tanh, orthogonal", "GRU", "clip by norm", LARGE]


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, f"a small version for a first look: {QUICK}"))
    parser.add_argument("--plot-only", action="store_true", help="table and figure from the dataset that is there")
    parser.add_argument("--fixes", nargs="+", choices=list(FIXES), metavar="FIX", help=f"of {list(FIXES)} (all)")
    what = {"seeds": "networks of each fix", "units": "n of a simple network, which sets the number of parameters"}
    what |= {"length": "T", "samples": "training sequences", "epochs": "of training"}
    for name, meaning in what.items():
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} (default: {FULL[name]}; quick: {QUICK[name]})")
    parser.add_argument("--workers", type=int, help="make the runs in this many processes (default: in this one)")
    parser.add_argument("--resume", action="store_true", help="keep finished runs that were made by the present code")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in (*FULL, "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    asked = options.fixes or (QUICK_FIXES if options.quick else list(FIXES))
    needed = {FIXES[name].against for name in asked}  # what a fix is compared with is run as well
    options.fixes = [name for name in FIXES if name in needed or name in asked]
    return options


def run(options: argparse.Namespace, path: Path) -> None:
    """Make the runs, and write their numbers."""
    started = time.perf_counter()
    task = gl.tasks.temporal_order(max(10, options.length), 1)
    try:
        wanted = experiments(
            options.fixes,
            options.seeds,
            units=options.units,
            features=task.inputs.shape[2],
            classes=task.num_classes or 1,
            data="temporal_order",
            length=options.length,
            samples=options.samples,
            epochs=options.epochs,
            batch_size=32,
            measured=["analysis", "credit"],
        )
        store = options.out / "runs"  # that of other jobs as well: every run has a name of its own
        reuse = "same-code" if options.resume else "none"
        swept = gl.sweep(wanted.values(), store, workers=options.workers, reuse=reuse)
    except (ValueError, gl.StoreError, ImportError) as error:
        raise SystemExit(f"{NAME}.py: {error}") from None
    found = {place: swept.store.load(one) for place, one in wanted.items() if one not in swept.failed}
    if not found:
        raise SystemExit(f"{NAME}.py: every run failed; the tracebacks are in {store}")
    ds = collect(found)
    ds.attrs |= environment() | {
        "title": "Fixes for vanishing and exploding gradients",
        "schema_version": SCHEMA_VERSION,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "reused": swept.kept,
        "failed": [f"{one.key}: {why}" for one, why in swept.failed.items()],
    }
    gl.save(ds, path.with_suffix(".nc"))


def main() -> None:
    """Run or read, write, draw, print."""
    options = arguments()
    path = path_of(NAME, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not options.plot_only:
        run(options, path)
    elif not path.with_suffix(".nc").is_file():
        raise SystemExit(f"no dataset at {path.with_suffix('.nc')}; run without --plot-only")
    ds = gl.load(path.with_suffix(".nc"))
    summary = summarise(ds)
    said = sentences(ds, summary)
    write_text_atomically(path.with_suffix(".csv"), summary.to_csv(index=False, float_format="%.6g"))
    rows = summary.astype(object).where(summary.notna(), None).to_dict(orient="records")
    made = dict(ds.attrs) | {"experiments": json.loads(ds.attrs["experiments"])}
    write_record({"environment": made, "fixes": rows, "sentences": said}, path)
    draw(ds, summary, path)
    print(table(summary).to_string(index=False))
    print("\n" + "\n".join(said))
    for one in ds.attrs["failed"]:
        print(f"failed, missing above, and tried again by --resume: {one}", file=sys.stderr)
    if ds.attrs["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
