"""What sweeps cost: runs per second over workers, overhead of a task, memory of a worker, and a plan for 10^5 runs.

The runs are analyses of small tanh networks; what is timed leaves out the start of the workers and the first runs of
each, in which TensorFlow is imported and graphs are traced. The overhead is that of runs that do nothing but draw a few
numbers. The plan multiplies what was measured: it says what breaks first, not that it was tried.

    python benchmarks/sweep_scaling.py            # about five minutes on 2 cores
    python benchmarks/sweep_scaling.py --quick    # about a minute
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from environment import environment

import gradlab as gl
from gradlab.collection import _form
from gradlab.jobs import name_of
from gradlab.record import command_line, figure, out_folder, path_of, read_record, write_record

RUNS = 100_000  # of the plan
SETTING = {"cell": "tanh", "data": "noise", "epochs": 0, "units": 16, "length": 60, "probes": 4, "held_out": 4}
SIZES = {
    "quick": {"runs": 16, "tiny": 60, "memory": 20, "files": 2_000, "calls": 500},
    "full": {"runs": 40, "tiny": 300, "memory": 200, "files": RUNS, "calls": 5_000},
}


def configs(count: int, **changes: Any) -> list[gl.Experiment]:
    """Return networks that differ in their seeds."""
    return [gl.Experiment(**(SETTING | changes), seed=seed) for seed in range(count)]


def drawn(experiment: gl.Experiment) -> xr.Dataset:
    """Return a result that takes no time to make."""
    return xr.Dataset({"rate": ("batch", np.random.default_rng(experiment.seed).standard_normal(8))})


def weighed(experiment: gl.Experiment) -> xr.Dataset:
    """Return the result of a run with the resident memory of the process that made it."""
    import psutil

    ds = gl.run(experiment)
    return ds.assign_attrs(resident_MiB=round(psutil.Process().memory_info().rss / 2**20, 1))


def steady_rate(folder: str, workers: int) -> float:
    """Return the runs per second after the first two of every worker, by when their files were written."""
    written = sorted(os.stat(Path(folder) / name).st_mtime for name in os.listdir(folder) if name.endswith(".nc"))
    warm = written[2 * workers :]
    return (len(warm) - 1) / (warm[-1] - warm[0])


def throughput(runs: int) -> list[dict[str, Any]]:
    """Return runs per second of the serial loop, one worker and two, with and without the start."""
    rows = []
    for workers in (None, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            done = gl.sweep(configs(runs), folder, workers=workers, progress=False)
            rate = steady_rate(folder, workers or 1)
            size = np.mean([os.stat(Path(folder) / name).st_size for name in os.listdir(folder)])
        name = "in this process" if workers is None else f"{workers} worker{'s' * (workers > 1)}"
        rows.append({"name": name, "runs_per_second": rate, "seconds_with_start": done.seconds, "bytes": float(size)})
        print(f"{name}: {rate:.2f} runs/s, {done.seconds:.1f} s with the start", flush=True)
    return rows


def overhead(tiny: int) -> dict[str, float]:
    """Return seconds per run that does nothing: serially into memory and to disk, and through one and two workers."""
    found = {}
    store = "memory://sweep-scaling"
    started = time.perf_counter()
    gl.sweep(configs(tiny), store, run=drawn, progress=False)
    found["in memory"] = (time.perf_counter() - started) / tiny
    for workers in (None, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            gl.sweep(configs(tiny), folder, workers=workers, run=drawn, progress=False)
            found["serial loop" if workers is None else f"{workers} worker{'s' * (workers > 1)}"] = 1 / steady_rate(
                folder, workers or 1
            )
    print("seconds per empty run: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()), flush=True)
    return found


def memory(runs: int) -> list[float]:
    """Return the resident memory of one worker after each of its runs, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        gl.sweep(configs(runs), folder, workers=1, run=weighed, progress=False)
        store = gl.Store(folder)
        found = []
        for key in store.finished():
            with store.opened(key) as ds:
                found.append((os.stat(f"{folder}/{key}.nc").st_mtime, ds.attrs["resident_MiB"]))
    weights = [weight for _, weight in sorted(found)]
    print(f"memory of a worker: {weights[0]:.0f} MiB after 1 run, {weights[-1]:.0f} MiB after {runs}", flush=True)
    return weights


def scheduler_rate(calls: int) -> float:
    """Return the tasks per second that scheduler, client and two workers handle when the tasks are nothing."""
    from gradlab.cluster import pool_of

    with pool_of(2) as client:
        client.gather(client.map(abs, range(100), pure=False))
        started = time.perf_counter()
        client.gather(client.map(abs, range(calls), pure=False))
        return calls / (time.perf_counter() - started)


def directory(files: int) -> dict[str, float]:
    """Return what many results in one folder cost: listing them, checking one, reading what one holds."""
    experiments = configs(200)
    with tempfile.TemporaryDirectory() as folder:
        store = gl.Store(folder)
        gl.sweep(experiments, store, run=drawn, progress=False)
        for number in range(files - len(experiments)):
            os.close(os.open(f"{folder}/tanh-noise-{number:016x}.nc", os.O_CREAT | os.O_WRONLY))
        started = time.perf_counter()
        names = store.finished()
        listed = time.perf_counter()
        for experiment in experiments:
            assert store.refusal(experiment, "any", name_of(drawn)) is None
        checked = time.perf_counter()
        for experiment in experiments:
            store.load(experiment)
        loaded = time.perf_counter()
        for experiment in experiments:
            with store.opened(experiment.key) as ds:
                _form(experiment.key, ds)
        formed = time.perf_counter()
    return {
        "files": len(names),
        "list_seconds": listed - started,
        "check_seconds_each": (checked - listed) / len(experiments),
        "form_seconds_each": (formed - loaded) / len(experiments),
        "load_seconds_each": (loaded - checked) / len(experiments),
    }


def plan(record: dict[str, Any]) -> dict[str, Any]:
    """Return what 10^5 such runs would take, from what was measured."""
    by_name = {row["name"]: row for row in record["throughput"]}
    each = 1 / by_name["1 worker"]["runs_per_second"]
    folder, tasks = record["directory"], record["scheduler_tasks_per_second"]
    seconds = {
        "schedule": RUNS / tasks,
        "list the folder": folder["list_seconds"] * RUNS / folder["files"],
        "check what is there to resume": folder["check_seconds_each"] * RUNS,
        "open the store, without values": folder["form_seconds_each"] * RUNS,
        "load everything": folder["load_seconds_each"] * RUNS,
        "run, on 100 workers": each * RUNS / 100,
    }
    return {
        "runs": RUNS,
        "seconds_per_run": each,
        "seconds": seconds,
        "gigabytes": by_name["1 worker"]["bytes"] * RUNS / 1e9,
        # the scheduler hands out so many tasks a second, and a worker takes one every `each` seconds
        "workers_that_saturate_the_scheduler": tasks * each,
    }


def sentences(record: dict[str, Any]) -> list[str]:
    """Return what a write-up could cite."""
    rates = {row["name"]: row["runs_per_second"] for row in record["throughput"]}
    cost, planned, weights = record["seconds_per_empty_run"], record["plan"], record["resident_MiB"]
    longest = max((name for name in planned["seconds"] if "workers" not in name), key=planned["seconds"].__getitem__)
    settled = weights[len(weights) // 10]
    two, one, serial = (rates[name] for name in ("2 workers", "1 worker", "in this process"))
    loop, through = (1e3 * cost[name] for name in ("serial loop", "1 worker"))
    return [
        f"Two workers make {two / one:.2f} times the runs of one per second, and one {one / serial:.2f} times those of"
        " the serial loop.",
        f"A task costs {through - loop:.1f} ms more through a worker than in the serial loop, where an empty run takes"
        f" {loop:.1f} ms with its provenance and its file.",
        f"Over {len(weights)} runs of one architecture the memory of a worker goes from {settled:.0f} MiB (after a"
        f" tenth of them) to {weights[-1]:.0f} MiB.",
        f"{planned['runs']} runs of this size are {planned['gigabytes']:.1f} GB in one folder. Of what is not the runs"
        f" themselves, the longest is to {longest}: {planned['seconds'][longest]:.0f} s; the scheduler takes"
        f" {planned['seconds']['schedule']:.0f} s in all, and is saturated by"
        f" {planned['workers_that_saturate_the_scheduler']:.0f} workers.",
    ]


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw throughput, memory and plan side by side."""
    with figure(path, columns=3, figsize=(7.2, 2.2)) as (_, axes):
        left, middle, right = axes[0]
        rows = record["throughput"]
        names, rates = [row["name"] for row in rows], [row["runs_per_second"] for row in rows]
        left.bar(names, rates, color=["0.6", "C0", "C0"], width=0.6)
        left.set(ylabel="runs per second", title="throughput")
        left.tick_params(axis="x", labelsize=5.5)
        left.margins(x=0.05)
        weights = record["resident_MiB"]
        middle.plot(np.arange(1, len(weights) + 1), weights)
        middle.set(xlabel="runs made", ylabel="memory (MiB)", ylim=(0, 1.15 * max(weights)), title="one worker")
        seconds = record["plan"]["seconds"]
        right.barh(list(seconds)[::-1], list(seconds.values())[::-1], color="C2", height=0.6)
        shortest = min(seconds.values())
        right.set(xscale="log", xlim=(shortest / 3, None), xlabel="seconds", title="plan for 10$^5$ runs")
        right.tick_params(axis="y", labelsize=5.5)


def main() -> None:
    """Measure, write, print, draw."""
    parser = out_folder(command_line(__doc__, "few runs, about a minute"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the JSON that is there")
    options = parser.parse_args()
    path = path_of("sweep_scaling", options)
    if not options.plot_only:
        write_record(measured(options.quick), path)
    record = read_record(path)
    draw(record, path)
    print("\n".join(record["sentences"]))


def measured(quick: bool) -> dict[str, Any]:
    """Return the record."""
    sizes = SIZES["quick" if quick else "full"]
    record: dict[str, Any] = {"environment": environment(peers=("dask", "distributed", "fsspec")), "sizes": sizes}
    record["setting"] = SETTING
    record["throughput"] = throughput(sizes["runs"])
    record["seconds_per_empty_run"] = overhead(sizes["tiny"])
    record["resident_MiB"] = memory(sizes["memory"])
    record["scheduler_tasks_per_second"] = scheduler_rate(sizes["calls"])
    record["directory"] = directory(sizes["files"])
    record["plan"] = plan(record)
    record["sentences"] = sentences(record)
    return record


if __name__ == "__main__":
    main()
