"""The store: one whole file for each run, whatever happens to the disk, the process or the file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sweep_bodies
import xarray as xr

import gradlab as gl
from gradlab.experiment import DATA
from gradlab.results import ForeignFile, content_hash
from gradlab.stamps import stamped
from gradlab.store import other_code

CONFIGS = sweep_bodies.configs(4)


def filled(store: gl.Store, experiments: list[gl.Experiment] = CONFIGS) -> gl.Store:
    store.folder.make()
    for experiment in experiments:
        store.write(experiment, stamped(sweep_bodies.drawn(experiment), experiment, 0.1))
    return store


@pytest.fixture
def store(tmp_path: Path) -> gl.Store:
    return filled(gl.Store(tmp_path / "runs"))


def hashes(store: gl.Store) -> dict[str, str]:
    return {key: content_hash(store.load(key)) for key in store.finished()}


@pytest.mark.parametrize("location", ["{folder}/runs", "file://{folder}/runs", "memory://{folder}/runs"])
def test_what_is_written_is_read(location: str, tmp_path: Path) -> None:
    store = filled(gl.Store(location.format(folder=tmp_path)))
    assert store.finished() == sorted(one.key for one in CONFIGS)
    for experiment in CONFIGS:
        ds = store.load(experiment)
        xr.testing.assert_equal(ds, sweep_bodies.drawn(experiment))
        assert json.loads(ds.attrs["experiment"]) == experiment.as_dict()
        assert ds.attrs["experiment_hash"] == experiment.hash
        assert ds.attrs["content_hash"] == content_hash(sweep_bodies.drawn(experiment))
        assert {"seed", "gradlab_version", "commit", "dirty", "platform", "processors", "threads"} <= ds.attrs.keys()
        assert {"thread_pools", "wall_seconds", "command", "created_utc"} <= ds.attrs.keys()
    assert all(name.endswith(".nc") for name in store.folder.names())


@pytest.mark.parametrize("location", ["{folder}/runs", "memory://{folder}/failing"])
def test_a_failure_is_forgotten_when_the_run_succeeds(location: str, tmp_path: Path) -> None:
    store, one = filled(gl.Store(location.format(folder=tmp_path)), []), CONFIGS[0]
    store.write_failure(one, "ValueError: no", "Traceback: no")
    record = store.failures()[one.key]
    assert record["experiment"] == one.as_dict()
    assert (record["error"], record["traceback"]) == ("ValueError: no", "Traceback: no")
    assert "commit" in record["provenance"]
    filled(store, [one])
    assert store.failures() == {}
    assert store.folder.names() == [f"{one.key}.nc"]


def test_a_truncated_file_is_made_again(store: gl.Store) -> None:
    path = Path(store.location) / f"{CONFIGS[1].key}.nc"
    before = hashes(store)
    for size in (0, 100, path.stat().st_size // 2, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="cut short: make it again"):
            store.load(CONFIGS[1])
        with pytest.warns(UserWarning, match="1 runs of .* are unreadable"):
            assert gl.open_store(store).sizes["run"] == 3
        done = gl.sweep(CONFIGS, store, run=sweep_bodies.drawn, progress=False)
        assert (done.done, done.kept) == (1, 3)
        assert hashes(store) == before


def test_a_flipped_bit_is_found(store: gl.Store) -> None:
    one, path = CONFIGS[0], Path(store.location) / f"{CONFIGS[0].key}.nc"
    data, number = bytearray(path.read_bytes()), sweep_bodies.drawn(CONFIGS[0])["rate"].values[0, 0].tobytes()
    data[data.index(number)] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="holds other numbers than were written: delete it, then make the"):
        store.load(one)


def test_a_foreign_file_is_left_alone(store: gl.Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of other names are none of the store's business; one that has a run's name is not overwritten."""
    folder = Path(store.location)
    (folder / "notes.txt").write_text("mine")
    temperature = xr.Dataset({"temperature": ("x", [1.0])})
    temperature.to_netcdf(folder / "weather.nc", engine="h5netcdf")
    temperature.to_netcdf(folder / f"{CONFIGS[2].key}.nc", engine="h5netcdf")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = gl.sweep(CONFIGS, store, run=sweep_bodies.drawn, progress=False)
    assert (done.done, done.kept, list(done.failed)) == (0, 3, [CONFIGS[2]])
    assert "without the attribute schema_version, holding temperature" in done.failed[CONFIGS[2]]
    assert "without the attribute schema_version" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.warns(UserWarning, match="2 runs of .* are unreadable"):
        ds = gl.open_store(store)
    assert ds.sizes["run"] == 3
    assert any("weather.nc must be a gradlab result" in said for said in ds.attrs["unreadable"])


def test_a_dataset_of_an_unknown_version_is_not_overwritten(store: gl.Store) -> None:
    path = Path(store.location) / f"{CONFIGS[0].key}.nc"
    xr.Dataset(attrs={"schema_version": 99}).to_netcdf(path, engine="h5netcdf")
    before = path.read_bytes()
    done = gl.sweep(CONFIGS, store, run=sweep_bodies.drawn, progress=False)
    assert (done.kept, list(done.failed)) == (3, [CONFIGS[0]])
    assert "must be 1, got 99; use the gradlab that wrote it" in done.failed[CONFIGS[0]]
    assert path.read_bytes() == before


def test_a_result_under_another_name_is_not_taken_for_it(store: gl.Store) -> None:
    folder, (a, b, *_) = Path(store.location), CONFIGS
    (folder / f"{a.key}.nc").write_bytes((folder / f"{b.key}.nc").read_bytes())
    with pytest.raises(ForeignFile, match="holds another run than its name says"):
        store.refusal(a, "any", "drawn")


def test_a_foreign_file_that_comes_in_between_is_not_overwritten(tmp_path: Path) -> None:
    """Neither by a sweep that has looked before, nor by one that keeps nothing."""
    path = tmp_path / f"{CONFIGS[1].key}.nc"

    def meanwhile(experiment: gl.Experiment) -> xr.Dataset:
        if experiment == CONFIGS[0]:
            xr.Dataset({"temperature": ("x", [1.0])}).to_netcdf(path, engine="h5netcdf")
        return sweep_bodies.drawn(experiment)

    for reuse in ("any", "none"):
        done = gl.sweep(CONFIGS[:2], tmp_path, run=meanwhile, reuse=reuse, progress=False)
        assert (done.done, list(done.failed)) == (1, [CONFIGS[1]])
        assert "holding temperature" in done.failed[CONFIGS[1]]
        assert list(xr.load_dataset(path, engine="h5netcdf")) == ["temperature"]
    assert gl.Store(tmp_path).failures() == {}


def test_a_run_that_fails_again_is_on_record_beside_its_older_result(tmp_path: Path) -> None:
    store, one = filled(gl.Store(tmp_path), CONFIGS[:2]), CONFIGS[1]

    def failing(experiment: gl.Experiment) -> xr.Dataset:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/home/ada/data.npz")

    gl.sweep([one], store, run=failing, reuse="none", progress=False)
    (record,) = store.failures().values()
    assert record["error"] == "FileNotFoundError: [Errno 2] No such file: 'data.npz'"
    assert "/home" not in json.dumps(record)
    with pytest.warns(UserWarning, match=r"1 runs of .* are failed, .*reuse='none' where an older result is"):
        assert gl.open_store(store).sizes["run"] == 2
    # a writer killed between the two steps of `write` leaves a record that is older than the result
    record["provenance"]["created_utc"] = "2020-01-01T00:00:00+00:00"
    (tmp_path / f"{one.key}.failed.json").write_text(json.dumps(record))
    assert store.failures() == {}


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for location in (tmp_path / "runs", tmp_path / "runs" / "below"):
        with pytest.raises(gl.StoreError, match=r"the store must be a folder, got .* which is a file or lies in one"):
            gl.sweep(CONFIGS, location, run=sweep_bodies.drawn, progress=False)
        with pytest.raises(gl.StoreError, match="must be a folder"):
            gl.open_store(location)


def test_what_a_remote_store_raises_is_no_failure_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = gl.Store(f"memory://{tmp_path}/refusing")

    def refuse(name: str, data: bytes) -> None:
        if name.endswith(".nc"):
            raise LookupError("no such bucket")

    monkeypatch.setattr(store.folder, "write", refuse)
    with pytest.raises(gl.StoreError, match=r"failed \(no such bucket\); every finished run is safe"):
        gl.sweep(CONFIGS, store, run=sweep_bodies.drawn, progress=False)
    assert store.failures() == {}


def test_a_sweep_shows_that_it_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token is made young again; what others have left in the folder is theirs, however old."""
    monkeypatch.setattr("gradlab.sweeps.RENEWAL", 0.01)
    ages: list[float] = []

    def aging(experiment: gl.Experiment) -> xr.Dataset:
        (token,) = (path for path in tmp_path.glob(".sweep-*") if path.name not in theirs)
        os.utime(token, (0, 0))
        deadline = time.monotonic() + 30.0
        while token.stat().st_mtime == 0.0 and time.monotonic() < deadline:  # while a single run is at work
            time.sleep(0.01)
        ages.append(time.time() - token.stat().st_mtime)
        return sweep_bodies.drawn(experiment)

    theirs = [".report.tmp", ".notes.nc.0123abcd.tmp", ".sweep-mine"]
    ours = [f".{CONFIGS[0].key}.failed.json.0123abcd.tmp"]
    ours += [f".{gl.Experiment('tanh', data=data, epochs=0).key}.nc.0123abcd.tmp" for data in DATA]
    ours += [".sweep-" + 16 * "0", "..sweep-" + 16 * "0" + ".0123abcd.tmp"]
    for name in theirs + ours:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    gl.sweep(CONFIGS, tmp_path, run=aging, progress=False)
    assert len(ages) == 4
    assert max(ages) < 3600
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith(".")) == sorted(theirs)


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system of its own, or skip where one may not."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no permission to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def wide(experiment: gl.Experiment) -> xr.Dataset:
    return xr.Dataset({"rate": ("batch", np.random.default_rng(experiment.seed).standard_normal(8000))})


def check_full(folder: Path) -> None:
    """Sweep where there is room for some results of 64 kB only: the first are safe, and the message helps."""
    configs = sweep_bodies.configs(6)
    with pytest.raises(gl.StoreError, match=r"is full .* every finished run is safe: free some space, then make the s"):
        gl.sweep(configs, folder, run=wide, progress=False)
    store = gl.Store(folder)
    there = store.finished()
    assert 1 <= len(there) < 6
    assert there == sorted(one.key for one in configs[: len(there)])
    for one in configs[: len(there)]:
        xr.testing.assert_equal(store.load(one), wide(one))
    assert [name for name in store.folder.names() if name.startswith(".")] == []


def test_a_full_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=300k") as folder:
        check_full(folder)
        subprocess.run(["mount", "-o", "remount,size=2m", folder], check=True)
        done = gl.sweep(sweep_bodies.configs(6), folder, run=wide, progress=False)
        assert done.done + done.kept == 6
        assert 1 <= done.kept < 6


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    """What a quota does, where no file system may be mounted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(gl.StoreError, match="is full"):
            gl.sweep(CONFIGS, tmp_path / "runs", run=wide, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "runs") == []


def test_a_read_only_store(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=2m") as folder:
        filled(gl.Store(folder))
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert gl.open_store(folder).sizes["run"] == 4  # reading needs no more
        with pytest.raises(gl.StoreError, match=r"cannot be written to .* make it writable, or name another folder"):
            gl.sweep(sweep_bodies.configs(6), folder, run=sweep_bodies.drawn, progress=False)
        assert len(gl.Store(folder).finished()) == 4


@pytest.mark.parametrize(
    ("number", "what"), [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written to"), (errno.EIO, "failed")]
)
def test_what_the_system_says_is_explained(
    number: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(gl.Store(tmp_path), CONFIGS[:1])

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(gl.StoreError, match=f"the store .* {what} .* every finished run is safe"):
        store.write(CONFIGS[1], stamped(sweep_bodies.drawn(CONFIGS[1]), CONFIGS[1], 0.1))
    assert store.folder.names() == [f"{CONFIGS[0].key}.nc"]


TERMINATED = """
import sys, time, pathlib
sys.path.insert(0, {tests!r})
import sweep_bodies, gradlab as gl
write, folder, count = pathlib.Path.write_bytes, pathlib.Path({folder!r}), [0]
def half(path, data):
    if ".nc." not in path.name or (count.append(0) or len(count) < 4):
        return write(path, data)
    write(path, data[:len(data) // 2])
    (folder / "now").touch()
    time.sleep(60)
pathlib.Path.write_bytes = half
gl.sweep(sweep_bodies.configs(4), folder / "runs", run=sweep_bodies.drawn, progress=False)
"""


def test_sigterm_in_mid_write(tmp_path: Path) -> None:
    code = TERMINATED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "now").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    store = gl.Store(tmp_path / "runs")
    assert store.finished() == sorted(one.key for one in CONFIGS[:2])
    assert gl.open_store(store).sizes["run"] == 2  # what lies about of the third is not taken for a result
    done = gl.sweep(CONFIGS, store, run=sweep_bodies.drawn, progress=False)
    assert (done.done, done.kept) == (2, 2)
    assert hashes(store) == {one.key: content_hash(sweep_bodies.drawn(one)) for one in CONFIGS}
    left = [name for name in store.folder.names() if name.startswith(".")]
    assert len(left) == 2  # the half file, and the sign that a sweep was at work
    for name in left:
        os.utime(tmp_path / "runs" / name, (0, 0))
    gl.sweep(CONFIGS, store, run=sweep_bodies.drawn, progress=False)
    assert [name for name in store.folder.names() if name.startswith(".")] == []  # nobody is at work on these any more


@pytest.mark.parametrize(
    ("then", "now", "why"),
    [
        ({}, {}, None),
        ({"commit": "b"}, {}, "by commit b, not a,"),
        ({"gradlab_version": "0"}, {}, "by gradlab 0, not "),
        ({"dirty": True}, {}, "with uncommitted changes"),
        ({"dirty": True}, {"dirty": True}, None),
        ({}, {"dirty": True}, None),
        ({"commit": "b"}, {"dirty": True}, "by commit b, not a,"),
        ({"commit": "unknown", "dirty": "unknown"}, {"commit": "unknown", "dirty": "unknown"}, None),
        ({"commit": "unknown", "dirty": "unknown"}, {}, "by commit unknown, not a,"),
        ({}, {"commit": "unknown", "dirty": "unknown"}, "by commit a, not unknown,"),
    ],
)
def test_same_code_keeps_what_the_present_code_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, object], now: dict[str, object], why: str | None
) -> None:
    clean = {"gradlab_version": gl.__version__, "commit": "a", "dirty": False}
    found = other_code(clean | then, clean | now)
    assert found == why if why is None else str(found).startswith(why)
    store, one = gl.Store(tmp_path), CONFIGS[0]
    store.write(one, stamped(sweep_bodies.drawn(one), one, 0.1).assign_attrs(clean | then))
    monkeypatch.setattr("gradlab.store.provenance", lambda: clean | now)
    said = store.refusal(one, "same-code", "drawn")
    assert said is None if why is None else f"was made {why}" in str(said)
    assert store.refusal(one, "any", "drawn") is None
    assert store.refusal(one, "none", "drawn") == ""
    assert store.refusal(CONFIGS[1], "same-code", "drawn") == ""  # there is none


def test_a_store_is_a_place() -> None:
    with pytest.raises(TypeError, match="store must be a folder or an fsspec URL, got 3"):
        gl.sweep([], 3)
    with pytest.raises(FileNotFoundError, match=r"no results in .*nowhere; gl.sweep"):
        gl.open_store("nowhere")
