"""Which statement to use when? Every bound and prediction beside the measured decay, by class of network.

"The gradient decays like ρ(W)^k" is the folk rule. How wrong is it, and what is there to use in its place? Linear and
tanh networks that are normal, random, non-normal, orthogonal, saturated, chaotic and trained; for each class several
independent networks. A prediction's error is predicted minus fitted rate of ln‖∂L/∂h_t‖, in nats per step; a bound's,
its distance from the measured gradient at the longest lag, over the lag, and how often it is crossed (never). Where a
hypothesis does not hold, the cell is empty and says which. Intervals resample whole networks. Writes to --out: JSON,
a table (.csv) and the figure (.pdf, .png), the last two from the JSON alone.

    python benchmarks/bounds_vs_truth.py              # at most 8 minutes on 2 cores
    python benchmarks/bounds_vs_truth.py --quick      # less than a minute, too few networks for intervals
    python benchmarks/bounds_vs_truth.py --plot-only  # table and figure again from the JSON
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported, which talks

from bounds_vs_truth_networks import KINDS, measured
from bounds_vs_truth_report import cell, draw, sentences, table
from bounds_vs_truth_statements import STATEMENTS, evaluate
from environment import environment
from tqdm import tqdm

from gradlab.record import command_line, out_folder, path_of, read_record, write_record
from gradlab.results import write_text_atomically

NAME = "bounds_vs_truth"
FULL = {"networks": 12, "units": 32, "steps": 64, "sequences": 4, "epochs": 12}
QUICK = {"networks": 2, "units": 12, "steps": 32, "sequences": 2, "epochs": 1}


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, f"a small version for a first look: {QUICK}"))
    parser.add_argument("--plot-only", action="store_true", help="table and figure from the JSON that is there")
    parser.add_argument("--classes", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    what = {"networks": "of each class", "units": "n", "steps": "T, if not trained", "sequences": "of each network"}
    for name, meaning in (what | {"epochs": "of training"}).items():
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} (default: {FULL[name]}; quick: {QUICK[name]})")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        if getattr(options, name) < (8 if name == "steps" else 1):
            parser.error(f"--{name} must be at least {8 if name == 'steps' else 1}, got {getattr(options, name)}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, got {options.seed}")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record."""
    started = time.perf_counter()
    sizes = {name: getattr(options, name) for name in FULL}
    each = {name: value for name, value in sizes.items() if name != "networks"} | {"seed": options.seed}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys(options.classes)}
    rates: dict[str, list[float]] = {name: [] for name in found}
    todo = [(name, replicate) for name in found for replicate in range(options.networks)]
    with tqdm(todo, unit="network", dynamic_ncols=True) as progress:
        for name, replicate in progress:
            progress.set_description(name)
            network = measured(name, replicate, **each)
            found[name].append(evaluate(network))
            rates[name].append(float(network.rate.mean()))
    cells = [
        {"statement": one.name, "kind": one.kind, "needs": one.needs, "class": name}
        | cell([network[one.name] for network in networks], options.seed)
        for one in STATEMENTS
        for name, networks in found.items()
    ]
    made = environment(options.seed) | {"wall_seconds": round(time.perf_counter() - started, 1)}
    classes = {name: {key: value for key, value in vars(KINDS[name]).items() if key != "matrix"} for name in found}
    what = {"units_of_errors": "nats per step", "classes": classes}
    return {"environment": made, **sizes, **what, "rates": rates, "cells": cells}


def main() -> None:
    """Run or read, write, draw, print."""
    options = arguments()
    path = path_of(NAME, options)
    if not options.plot_only:
        write_record(run(options), path)
    record = read_record(path)
    numbers = table(record)
    write_text_atomically(path.with_suffix(".csv"), numbers.to_csv(index=False))
    draw(record, path)
    print(numbers.replace(r"^— \(.*", "—", regex=True).to_string(index=False))  # the reasons are in the file
    print("\n" + "\n".join(sentences(record)))


if __name__ == "__main__":
    main()
