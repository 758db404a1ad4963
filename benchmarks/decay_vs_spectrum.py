"""How fast do gradients decay, and what predicts it? Measured decay beside ρ(W), λ1, mean field and the bounds.

Tanh, ReLU, LSTM and GRU networks over recurrent gains, several of each cell and gain, at initialisation and after
training on real sequences. Every network has a seed of its own for its weights, its split of the data and the order of
its batches, so that networks are independent given the data set. Writes to --out: the dataset (.nc), the table (.csv,
booktabs .tex), two figures (.pdf, .png), and the provenance with the summary (.json); every finished run is kept under
runs/, a store of `gradlab.sweep`, and skipped by --resume, if the code that made it is the present one.

    python benchmarks/decay_vs_spectrum.py            # at most 10 minutes on 2 cores; --workers N: in N processes
    python benchmarks/decay_vs_spectrum.py --quick    # about half a minute, one network each: no intervals
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from decay_vs_spectrum_figures import draw_anatomy, draw_overview
from decay_vs_spectrum_report import CELLS, collect, latex, sentences, summarise, table

import gradlab as gl
from gradlab.experiment import DATA
from gradlab.results import SCHEMA_VERSION, provenance, write_text_atomically

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow is imported by the first run, and talks

DEFAULT_GAINS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
CHOICES = {"cells": tuple(CELLS), "data": tuple(DATA)}


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small version of the same, for a first look")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--data", choices=CHOICES["data"], default="digits", help="sequences (default: %(default)s)")
    parser.add_argument("--cells", nargs="+", choices=CHOICES["cells"], default=list(CHOICES["cells"]))
    parser.add_argument("--gains", nargs="+", type=float, help=f"recurrent gains (default: {DEFAULT_GAINS})")
    parser.add_argument("--units", type=int, help="units n per gate (default: 32)")
    parser.add_argument("--seeds", type=int, help="networks of each cell and gain (default: 3)")
    parser.add_argument("--epochs", type=int, help="epochs of training (default: 12; noise: 0)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="make the runs in this many processes (default: in this one)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="make the runs on the Dask cluster at tcp://HOST:PORT")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the runs under --out that are finished and were made by the present version and commit without"
        " uncommitted changes; while there are such changes now, by the present commit, with a warning; outside of a"
        " git checkout, by the present version",
    )
    options = parser.parse_args()
    small = {"gains": [0.8, 1.5], "units": 16, "seeds": 1, "epochs": 1}
    full = {"gains": list(DEFAULT_GAINS), "units": 32, "seeds": 3, "epochs": 12}
    for name, value in (small if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, 0 if name == "epochs" and options.data == "noise" else value)
    for name in ("seeds", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def network_seed(replicate: int, cell: str, gain: float) -> int:
    """Return a seed below 2^31 for one network: of its own, and the same whatever else is in the sweep.

    With one matrix for all gains, as common random numbers, gains could be compared with less noise. But what is
    reported are averages over gains and cells, and those a shared matrix moves all at once.
    """
    words = [replicate, *f"{cell} {float(gain)!r}".encode()]
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def experiments(options: argparse.Namespace) -> list[gl.Experiment]:
    """Return the runs asked for, in the order in which they are made."""
    sequences, batch = (4, 128) if options.quick else (8, 64)
    return [
        gl.Experiment(
            cell=cell,
            gain=gain,
            seed=network_seed(replicate, cell, gain),
            data=options.data,
            units=options.units,
            epochs=options.epochs,
            batch_size=batch,
            probes=sequences,
            held_out=sequences,
        )
        for replicate in range(options.seeds)
        for cell in dict.fromkeys(options.cells)
        for gain in sorted(set(options.gains))
    ]


def main() -> None:
    """Run, collect, write, print."""
    options, started = arguments(), time.perf_counter()
    try:
        wanted = experiments(options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"decay_vs_spectrum.py: {error}") from None
    if options.resume and provenance()["dirty"] is True:
        print("--resume: the tree is dirty; runs of its commit are kept, whatever changed since", file=sys.stderr)
    reuse = "same-code" if options.resume else "none"
    try:
        swept = gl.sweep(wanted, options.out / "runs", options.scheduler, workers=options.workers, reuse=reuse)
    except (gl.StoreError, ConnectionError, ImportError) as error:
        raise SystemExit(f"decay_vs_spectrum.py: {error}") from None
    wanted = [one for one in swept.experiments if one not in swept.failed]
    if not wanted:
        raise SystemExit(f"decay_vs_spectrum.py: every run failed; the tracebacks are in {options.out / 'runs'}")
    found = [swept.store.load(one) for one in wanted]
    ds = collect(found)
    ds.attrs |= provenance() | {"schema_version": SCHEMA_VERSION, "title": "Measured decay and what predicts it"}
    stem = options.out / "decay_vs_spectrum"
    gl.save(ds, stem.with_suffix(".nc"))  # before anything that may fail: the report can be made again from it
    numbers, summary = table(ds), summarise(ds)
    spoken = sentences(ds, summary)
    write_text_atomically(stem.with_suffix(".csv"), numbers.to_csv(index=False, float_format="%.6g"))
    write_text_atomically(stem.with_suffix(".tex"), latex(numbers))
    draw_overview(ds, summary, stem)
    # of several, the first
    reference = min(range(len(wanted)), key=lambda i: (wanted[i].cell != "tanh", abs(wanted[i].gain - 1.0)))
    draw_anatomy(found[reference], stem.with_name("decay_vs_spectrum_anatomy"))
    record = {
        "provenance": {name: value for name, value in ds.attrs.items() if name != "experiments"},
        "experiments": json.loads(ds.attrs["experiments"]),
        "runs": len(wanted),
        "reused": swept.kept,
        "failed": {one.key: why for one, why in swept.failed.items()},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "predictors": summary.astype(object).where(summary.notna(), None).to_dict(orient="records"),
        "sentences": spoken,
    }
    write_text_atomically(stem.with_suffix(".json"), json.dumps(record, indent=1, default=str) + "\n")
    print(numbers.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="—"))
    if not summary.empty:
        print("\nPredicted minus measured rate, nats per step:")
        print(summary.to_string(index=False, float_format=lambda value: f"{value:.3f}", na_rep="—"))
    print("\n" + "\n".join(spoken))
    if swept.failed:
        print(f"\n{len(swept.failed)} runs failed and are missing above; --resume tries them again:", file=sys.stderr)
        for one, why in swept.failed.items():
            print(f"  {one.key}: {why}", file=sys.stderr)
    print(f"\n{len(wanted)} runs ({swept.kept} reused) in {record['wall_seconds']:.0f} s; written to {stem}.*")
    if swept.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
