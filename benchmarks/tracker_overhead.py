"""What does GradientTracker cost at its default schedule, as a share of training time?

Networks are trained on the 64 pixels of the digits with and without the tracker by turns, everything else alike, after
one training of each kind that does not count. What it costs is what a training takes longer, the median over the turns
with the smallest and the largest, in wall time and in processor time (which other programs on the machine move less).
The limit is passed where the looks take more, or every turn does.
What its looks themselves take, of which the first holds the tracing of its graph, explains it: the rest is what Keras
does only where there is a callback. That the weights come out the same, bit by bit, is checked in each case.

    python benchmarks/tracker_overhead.py            # ten minutes on two cores
    python benchmarks/tracker_overhead.py --quick    # a minute: few epochs, where the first look weighs more
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from environment import environment

import gradlab as gl
from gradlab.record import command_line, figure, out_folder, path_of, read_record, write_record

NAME = "tracker_overhead"
PROBES = 16
LIMIT = 0.05
CASES = ("tanh", "GRU", "LSTM")


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, "a few epochs of each case"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the JSON that is there")
    parser.add_argument("--epochs", type=int, help="of each training (default: 50; quick: 4)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="trainings with and without, by turns (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and batches (default: %(default)s)")
    options = parser.parse_args()
    options.epochs = (4 if options.quick else 50) if options.epochs is None else options.epochs
    for name in ("epochs", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def clocks() -> np.ndarray:
    """Return wall time and processor time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def network(case: str, seed: int) -> tuple[keras.Model, gl.tasks.Task]:
    """Return a compiled model and what it learns."""
    keras.utils.set_random_seed(seed)
    task = gl.tasks.digits(seed=seed)
    layers: list[Any] = {
        "tanh": lambda: [keras.layers.SimpleRNN(32)],
        "GRU": lambda: [keras.layers.GRU(32)],
        "LSTM": lambda: [keras.layers.LSTM(32)],
    }[case]()
    model = keras.Sequential([keras.Input(task.inputs.shape[1:]), *layers, keras.layers.Dense(task.num_classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0), loss)
    return model, task


def train(case: str, epochs: int, seed: int, tracked: bool) -> dict[str, Any]:
    """Train once; return times in seconds, and the weights."""
    model, task = network(case, seed)
    x = task.inputs.astype(np.float32)
    probe = (task.test_inputs[:PROBES].astype(np.float32), task.test_targets[:PROBES])
    callbacks = [gl.GradientTracker(*probe)] if tracked else []
    started = clocks()
    model.fit(x, task.targets, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks)
    seconds = clocks() - started
    looks = callbacks[0].dataset()["tracking_seconds"].values.tolist() if tracked else []
    return {"seconds": seconds, "looks": looks, "weights": model.get_weights()}


def measure(case: str, epochs: int, rounds: int, seed: int) -> dict[str, Any]:
    """Return the row of one case."""
    plain, tracked = [], []
    for _ in range(rounds):
        plain.append(train(case, epochs, seed, tracked=False))
        tracked.append(train(case, epochs, seed, tracked=True))
    same = all(
        np.array_equal(one, other)
        for run in tracked
        for one, other in zip(run["weights"], plain[0]["weights"], strict=True)
    )
    longer = np.array([a["seconds"] / b["seconds"] - 1.0 for a, b in zip(tracked, plain, strict=True)])
    training = float(np.median([run["seconds"][0] for run in plain]))
    looks = np.array([run["looks"] for run in tracked])
    return {
        "case": case,
        "epochs": epochs,
        "looks": looks.shape[1],
        "training_seconds": training,
        "share": float(np.median(longer[:, 0])),
        "share_range": [float(longer[:, 0].min()), float(longer[:, 0].max())],
        "processor_share": float(np.median(longer[:, 1])),
        "share_of_looks": float(np.median(looks.sum(axis=1))) / training,
        "share_of_first_look": float(np.median(looks[:, 0])) / training,
        "median_look_seconds": float(np.median(looks[:, 1:])) if looks.shape[1] > 1 else float("nan"),
        "bit_identical": same,
    }


def run(epochs: int, rounds: int, seed: int) -> dict[str, Any]:
    """Return the record."""
    started, rows = time.perf_counter(), []
    for tracked in (False, True):  # imports and compiled code, which a process pays once
        train("tanh", 1, seed, tracked)
    for case in CASES:
        rows.append(measure(case, epochs, rounds, seed))
        row = rows[-1]
        low, high = row["share_range"]
        print(
            f"{case:8s} {row['looks']:2d} looks in {epochs} epochs: a training of {row['training_seconds']:.1f} s takes"
            f" {100 * row['share']:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}] longer,"
            f" {100 * row['processor_share']:+.1f} % in processor time; the looks take"
            f" {100 * row['share_of_looks']:.1f} %, the first of them {100 * row['share_of_first_look']:.1f} %;"
            f" weights {'identical' if row['bit_identical'] else 'DIFFER'}",
            flush=True,
        )
    made = environment(seed) | {"wall_seconds": round(time.perf_counter() - started, 1)}
    return {"environment": made, "probes": PROBES, "rounds": rounds, "limit": LIMIT, "rows": rows}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the shares, from the record alone."""
    rows = record["rows"]
    with figure(path, figsize=(3.4, 2.2)) as (_, axes):
        ax = axes[0, 0]
        places = np.arange(len(rows))[::-1]
        share, first, looks = (
            100 * np.array([row[name] for row in rows]) for name in ("share", "share_of_first_look", "share_of_looks")
        )
        ends = 100 * np.array([row["share_range"] for row in rows])
        ax.barh(places, looks - first, height=0.6, color="C0", label="looks")
        ax.barh(places, first, left=looks - first, height=0.6, color="C5", label="first look, with tracing")
        ax.errorbar(
            share, places, xerr=np.abs(ends.T - share), fmt="o", color="k", markersize=3, label="longer training"
        )
        ax.axvline(100 * record["limit"], color="0.4", linestyle="--", linewidth=0.8, label="limit")
        for place, row in zip(places, rows, strict=True):
            label = f"{row['looks']} looks, {1000 * row['median_look_seconds']:.0f} ms (median)"
            ax.text(1.04, place, label, va="center", fontsize=6, transform=ax.get_yaxis_transform())
        ax.set_yticks(places, [row["case"] for row in rows])
        ax.set(xlabel=f"time of the tracker, % of that of training ({rows[0]['epochs']} epochs)")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def main() -> None:
    """Run or read, write, draw."""
    options = arguments()
    path = path_of(NAME, options)
    if not options.plot_only:
        write_record(run(options.epochs, options.rounds, options.seed), path)
    record = read_record(path)
    draw(record, path)
    # looks are timed one by one; of what a whole training takes longer, the turns say how well it is known
    limit = record["limit"]
    late = [row["case"] for row in record["rows"] if max(row["share_of_looks"], min(row["share_range"])) > limit]
    verdict = f"more than that in {', '.join(late)}" if late else "within it in every case"
    print(f"limit {100 * record['limit']:.0f} %: {verdict}; record and figure at {path}")


if __name__ == "__main__":
    main()
