"""Sweeps on workers: real processes, killed for good, and the store as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sweep_bodies
import xarray as xr

import gradlab as gl
from gradlab.results import content_hash

distributed = pytest.importorskip("distributed")
HERE = Path(__file__).parent
DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import sweep_bodies, gradlab as gl
if __name__ == "__main__":
    gl.sweep(sweep_bodies.configs(24), {store!r}, {how}, run=sweep_bodies.announced, progress=False)
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("gate")
    os.environ[sweep_bodies.GATE] = str(folder)  # before the workers are started: they inherit it
    yield folder
    del os.environ[sweep_bodies.GATE]


@pytest.fixture(scope="module")
def address(gate: Path) -> Iterator[str]:
    """Two worker processes of one thread; their client is not the one that sweeps."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def empty(gate: Path) -> None:
    for path in gate.iterdir():
        path.unlink()


def expected(configs: list[gl.Experiment]) -> dict[str, str]:
    """What the serial run gives."""
    return {one.key: content_hash(sweep_bodies.drawn(one)) for one in configs}


def hashes(folder: Path) -> dict[str, str]:
    store = gl.Store(folder)
    return {key: content_hash(store.load(key)) for key in store.finished()}


def seen(gate: Path) -> list[tuple[int, int]]:
    """Which run was begun by which process."""
    return [(int(seed), int(pid)) for seed, pid in (path.name.split(".") for path in gate.iterdir())]


def until(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def driver(tmp_path: Path, how: str) -> subprocess.Popen[bytes]:
    """Start a process that sweeps 24 runs into tmp_path/runs."""
    (tmp_path / "driver.py").write_text(
        DRIVER.format(tests=str(HERE), store=str(tmp_path / "runs"), how=how), encoding="utf-8"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    return subprocess.Popen([sys.executable, str(tmp_path / "driver.py")], env=environment)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_killed_in_mid_sweep_loses_its_running_task_only(address: str, gate: Path, tmp_path: Path) -> None:
    configs, killed = sweep_bodies.configs(30), []

    def kill() -> None:
        until(lambda: any(seed >= 2 for seed, _ in seen(gate)))
        killed.append(max(seen(gate)))
        os.kill(killed[0][1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = gl.sweep(configs, tmp_path, address, run=sweep_bodies.announced, progress=False)
    killer.join()
    assert (done.done + done.kept, done.failed) == (30, {})
    assert hashes(tmp_path) == expected(configs)
    begun = [seed for seed, _ in seen(gate)]
    assert sorted(set(begun)) == list(range(30))
    assert [seed for seed in set(begun) if begun.count(seed) > 1] == [killed[0][0]]  # retried by another


def test_a_killed_driver_and_a_second_client(address: str, gate: Path, tmp_path: Path) -> None:
    """A client that connects by address is killed; another makes the same call and what is finished is kept."""
    configs = sweep_bodies.configs(24)
    with driver(tmp_path, repr(address)) as process:
        until(lambda: len(seen(gate)) >= 6)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = len(gl.Store(tmp_path / "runs").finished())
    assert 4 <= before < 24
    done = gl.sweep(configs, tmp_path / "runs", address, run=sweep_bodies.announced, progress=False)
    assert done.kept >= before
    assert done.done + done.kept == 24
    assert hashes(tmp_path / "runs") == expected(configs)


def test_a_killed_driver_takes_its_pool_along(gate: Path, tmp_path: Path) -> None:
    with driver(tmp_path, "workers=2") as process:
        until(lambda: len(seen(gate)) >= 4)
        process.kill()
    workers = {pid for _, pid in seen(gate)}
    assert process.pid not in workers
    until(lambda: not any(map(alive, workers)))
    done = gl.sweep(sweep_bodies.configs(24), tmp_path / "runs", run=sweep_bodies.announced, progress=False)
    assert done.kept >= 2
    assert hashes(tmp_path / "runs") == expected(sweep_bodies.configs(24))


def test_failures_on_workers_are_on_record(address: str, tmp_path: Path) -> None:
    configs = sweep_bodies.configs(6)
    done = gl.sweep(configs, tmp_path, address, run=sweep_bodies.failing, progress=False)
    assert set(done.failed) == {configs[1], configs[4]}
    assert set(hashes(tmp_path)) == {one.key for one in configs if one not in done.failed}
    record = gl.Store(tmp_path).failures()[configs[4].key]
    assert "in failing" in record["traceback"]


def test_a_store_that_workers_do_not_see(address: str) -> None:
    with pytest.raises(gl.StoreError, match=r"must be the same for the sweep and its workers.*a folder that all"):
        gl.sweep(sweep_bodies.configs(2), "memory://here-only", address, run=sweep_bodies.drawn, progress=False)


def test_no_scheduler_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlab.cluster.PATIENCE", "0.3s")
    with pytest.raises(ConnectionError, match=r"got 'tcp://127.0.0.1:9', where none answers .* start one with `dask"):
        gl.sweep(sweep_bodies.configs(2), tmp_path, "tcp://127.0.0.1:9", run=sweep_bodies.drawn, progress=False)


def test_a_run_that_kills_its_workers_fails_and_the_rest_is_made(tmp_path: Path) -> None:
    import dask

    configs = sweep_bodies.configs(5)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        done = gl.sweep(configs, tmp_path, workers=1, run=sweep_bodies.deadly, progress=False)
    assert list(done.failed) == [configs[2]]
    assert "every worker that was at this run died" in done.failed[configs[2]]
    assert "tcp://" not in gl.Store(tmp_path).failures()[configs[2].key]["traceback"]
    assert len(hashes(tmp_path)) == 4


def test_a_worker_that_grows_is_replaced(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlab.sweeps.GROWTH", 2 * 2**24)
    configs = sweep_bodies.configs(12)
    done = gl.sweep(configs, tmp_path, address, run=sweep_bodies.leaking, progress=False)
    assert (done.done, done.kept, done.failed) == (12, 0, {})
    made = [gl.Store(tmp_path).load(one).attrs for one in configs]
    assert len({one["process"] for one in made}) > 2
    assert max(one["leaked"] for one in made) <= 5
    assert hashes(tmp_path) == expected(configs)


def test_the_real_thing(address: str, tmp_path: Path) -> None:
    """A trained network: workers give the same bits as this process."""
    small = {"data": "vowels", "units": 4, "epochs": 1, "probes": 2, "held_out": 1, "batch_size": 90}
    one = gl.Experiment("tanh", gain=1.2, **small)
    done = gl.sweep([one], tmp_path, address, progress=False)
    assert (done.done, done.failed) == (1, {})
    stored, here = gl.Store(tmp_path).load(one), gl.run(one)
    xr.testing.assert_equal(stored, here)
    assert stored.attrs["content_hash"] == here.attrs["content_hash"]
    assert stored.attrs["thread_pools"]["tensorflow"] == stored.attrs["thread_pools"]["blas"] == 1
