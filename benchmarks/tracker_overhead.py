"""What does GradientTracker cost at its default schedule, as a share of training time?

Networks are trained on the 64 pixels of the digits with and without the tracker by turns, everything else alike. The
share, that of the round in the middle, is what the tracker's own calls take, over what the rest of the training takes,
in wall time and in processor time (which other programs on the machine move less); the first look holds the tracing of
the graph, which is paid once, and is shown apart. That the weights come out the same, bit by bit, is checked in each
case.

    python benchmarks/tracker_overhead.py            # minutes on two cores
    python benchmarks/tracker_overhead.py --quick    # half a minute: fewer epochs, where the first look weighs more
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
        "--rounds", type=int, default=1, help="trainings with and without, by turns (default: %(default)s)"
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


class Timed(keras.callbacks.Callback):
    """Stands before and after the tracker in the list of callbacks and measures what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = np.zeros(2)  # wall time, processor time
        self._started = np.zeros(2)

    def before(self) -> keras.callbacks.Callback:
        """Return the callback that starts the clock."""
        return _Hooks(self._start)

    def after(self) -> keras.callbacks.Callback:
        """Return the callback that stops it."""
        return _Hooks(self._stop)

    def _start(self) -> None:
        self._started = clocks()

    def _stop(self) -> None:
        self.inside += clocks() - self._started


class _Hooks(keras.callbacks.Callback):
    """Calls a function wherever the tracker is called."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Call it."""
        self.function()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Call it."""
        self.function()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Call it."""
        self.function()

    def on_train_end(self, logs: Any = None) -> None:
        """Call it."""
        self.function()


def network(case: str, seed: int) -> tuple[keras.Model, gl.tasks.Task]:
    """Return a compiled model and what it learns."""
    keras.utils.set_random_seed(seed)
    task = gl.tasks.digits(seed=seed)
    layers: list[Any] = {
        "": lambda: [keras.layers.SimpleRNN(5)],
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
    callbacks: list[Any] = []
    timed = Timed()
    tracker = None
    if tracked:
        tracker = gl.GradientTracker(task.test_inputs[:PROBES].astype(np.float32), task.test_targets[:PROBES])
        callbacks = [timed.before(), tracker, timed.after()]
    started = clocks()
    model.fit(x, task.targets, batch_size=32, epochs=epochs, verbose=0, callbacks=callbacks)
    whole = clocks() - started
    looks = [] if tracker is None else tracker.dataset()["tracking_seconds"].values.tolist()
    return {"whole": whole, "inside": timed.inside, "looks": looks, "weights": model.get_weights()}


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
    ordered = sorted(tracked, key=lambda run: run["inside"][0] / (run["whole"] - run["inside"])[0])
    middle = ordered[rounds // 2]  # of an even number the upper one
    training = middle["whole"] - middle["inside"]
    wall, processor = (middle["inside"] / training).tolist()
    walls = [float(np.median([run["whole"][0] for run in runs])) for runs in (tracked, plain)]
    return {
        "case": case,
        "epochs": epochs,
        "looks": len(middle["looks"]),
        "training_seconds": float(training[0]),
        "share": wall,
        "processor_share": processor,
        "share_of_first_look": middle["looks"][0] / float(training[0]),
        "median_look_seconds": float(np.median(middle["looks"][1:])) if len(middle["looks"]) > 1 else float("nan"),
        "wall_difference": walls[0] / walls[1] - 1.0,
        "bit_identical": same,
    }


def run(epochs: int, rounds: int, seed: int) -> dict[str, Any]:
    """Return the record."""
    started, rows = time.perf_counter(), []
    for tracked in (False, True):  # imports and compiled code, which a process pays once
        train("", 1, seed, tracked)
    for case in CASES:
        rows.append(measure(case, epochs, rounds, seed))
        row = rows[-1]
        print(
            f"{case:8s} {row['looks']:2d} looks in {epochs} epochs: {100 * row['share']:.2f} % of"
            f" {row['training_seconds']:.1f} s (first look {100 * row['share_of_first_look']:.2f} %),"
            f" {100 * row['processor_share']:.2f} % of processor time; wall {100 * row['wall_difference']:+.1f} %;"
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
        first = np.array([100 * row["share_of_first_look"] for row in rows])
        rest = np.array([100 * row["share"] for row in rows]) - first
        ax.barh(places, rest, height=0.6, color="C0", label="looks")
        ax.barh(places, first, left=rest, height=0.6, color="C5", label="first look, with tracing")
        ax.axvline(100 * record["limit"], color="0.4", linestyle="--", linewidth=0.8, label="limit")
        for place, row in zip(places, rows, strict=True):
            label = f" {row['looks']} looks, {1000 * row['median_look_seconds']:.0f} ms each"
            ax.text(100 * max(row["share"], record["limit"]), place, label, va="center", fontsize=6)
        ax.set_yticks(places, [row["case"] for row in rows])
        widest = max(100 * record["limit"], *(100 * row["share"] for row in rows))
        ax.set(
            xlim=(0, 1.6 * widest), xlabel=f"time of the tracker, % of that of training ({rows[0]['epochs']} epochs)"
        )
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def main() -> None:
    """Run or read, write, draw."""
    options = arguments()
    path = path_of(NAME, options)
    if not options.plot_only:
        write_record(run(options.epochs, options.rounds, options.seed), path)
    record = read_record(path)
    draw(record, path)
    late = [row["case"] for row in record["rows"] if row["share"] > record["limit"]]
    verdict = f"more than that in {', '.join(late)}" if late else "within it in every case"
    print(f"limit {100 * record['limit']:.0f} %: {verdict}; record and figure at {path}")


if __name__ == "__main__":
    main()
