"""How fast do gradients decay, and what predicts it? Measured decay beside ρ(W), λ1, mean field and the bounds.

Tanh, ReLU, LSTM and GRU networks over recurrent gains, several of each cell and gain, at initialisation and after
training on real sequences. Every network has a seed of its own for its weights, its split of the data and the order of
its batches, so that networks are independent given the data set. Writes to --out: the dataset (.nc), the table (.csv,
booktabs .tex), two figures (.pdf, .png), and the provenance with the summary (.json); every finished run is kept under
runs/ and skipped by --resume, if the code that made it is the present one.

    python benchmarks/decay_vs_spectrum.py            # at most 10 minutes on 2 cores
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
import xarray as xr
from decay_vs_spectrum_report import collect, draw_anatomy, draw_overview, latex, sentences, summarise, table
from tqdm import tqdm

import gradlab as gl
from gradlab.results import SCHEMA_VERSION, provenance, write_text_atomically

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow is imported by the first run, and talks

DEFAULT_GAINS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
CHOICES = {"cells": ("tanh", "relu", "lstm", "gru"), "data": ("digits", "vowels", "adding", "noise")}


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
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
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


def finished(path: Path, now: dict[str, str | int]) -> bool:
    """Whether a run is on disk, whole, and made by the code whose `provenance` is `now`; if not, say why."""
    if not path.exists():
        return False
    try:
        then = gl.load(path).attrs
    except (ValueError, OSError) as error:
        tqdm.write(f"{path} is not usable and is made again: {error}", file=sys.stderr)
        return False
    why = None
    for name, what in (("gradlab_version", "gradlab"), ("commit", "commit")):
        if then.get(name) != now[name]:
            why = why or f"by {what} {then.get(name)}, not {now[name]},"
    # while the present code is dirty itself, nothing tells one uncommitted change from another: main warns of that
    if then.get("dirty") is True and now["dirty"] is False:
        why = why or "with uncommitted changes"
    if why:
        tqdm.write(f"{path} was made {why} and is made again", file=sys.stderr)
    return why is None


def main() -> None:
    """Run, collect, write, print."""
    options, started = arguments(), time.perf_counter()
    try:
        wanted = experiments(options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"decay_vs_spectrum.py: {error}") from None
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    found: list[xr.Dataset] = []
    reused, now = 0, provenance()
    if options.resume and now["dirty"] is True:
        print("--resume: the tree is dirty; runs of its commit are kept, whatever changed since", file=sys.stderr)
    with tqdm(wanted, unit="run", dynamic_ncols=True) as progress:
        for experiment in progress:
            progress.set_description(f"{experiment.cell} g={experiment.gain:g} seed={experiment.seed}")
            path = runs / f"{experiment.key}.nc"
            if options.resume and finished(path, now):
                reused += 1
                found.append(gl.load(path))
                continue
            found.append(gl.run(experiment))
            gl.save(found[-1], path)
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
        "reused": reused,
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
    print(f"\n{len(wanted)} runs ({reused} reused) in {record['wall_seconds']:.0f} s; written to {stem}.*")


if __name__ == "__main__":
    main()
