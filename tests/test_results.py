from __future__ import annotations

import errno
import os
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest
import xarray as xr

from gradlab import results


@pytest.fixture
def ds() -> xr.Dataset:
    """Everything that is awkward to store: −∞, NaN, subnormals, bool, odd attributes, misleading units."""
    return xr.Dataset(
        {
            "log_singular_values": (
                ("batch", "time", "mode"),
                np.array([[[-np.inf, np.nan, 5e-324], [-0.0, 1e308, 0.1]]]),
                {"units": "nats", "formula": "ln σ_i(∂h_T/∂h_t)", "estimated": True, "source": None},
            ),
            "certified": ("batch", [True]),
            "wall_time": ("time", [1.5, 2.5], {"units": "seconds"}),
            "age": ("time", [0.0, 1.0], {"units": "days"}),
            "kreiss_lower_bound": 1.25,
        },
        coords={"time": ("time", [0, 1], {"units": "steps"}), "part": ("mode", ["h", "c", "ħ"])},
        attrs={
            "title": "",
            "dirty": False,
            "clean": np.True_,
            "seed": 3,
            "gain": 1.5,
            "nothing": None,
            "looks_encoded": "json:null",
            "state_parts": {"h": 2, "c": [1, None]},
            "array": np.array([1.0, -np.inf]),
        },
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_changes_nothing(ds, tmp_path):
    before = ds.copy(deep=True)
    assert results.save(ds, tmp_path / "run.nc") == tmp_path / "run.nc"
    assert files(tmp_path) == ["run.nc"]
    same = results.load(str(tmp_path / "run.nc"))
    xr.testing.assert_identical(ds, before)  # saving alters nothing in memory
    assert same.attrs.pop("schema_version") == 1
    array = same.attrs.pop("array")
    np.testing.assert_array_equal(array, before.attrs.pop("array"))
    assert same.attrs == before.attrs
    assert {k: type(v) for k, v in same.attrs.items() if k != "clean"} == {
        k: type(v) for k, v in before.attrs.items() if k != "clean"
    }
    for name in before.variables:
        assert same[name].dtype.kind == before[name].dtype.kind
        assert same[name].attrs == before[name].attrs
        assert same[name].dims == before[name].dims
        np.testing.assert_array_equal(same[name].values, before[name].values, strict=same[name].dtype.kind != "U")
    assert np.signbit(same.log_singular_values.values[0, 1, 0])


def test_saving_what_was_loaded_gives_the_same_again(ds, tmp_path):
    first = results.load(results.save(ds, tmp_path / "a.nc"))
    again = results.load(results.save(first, tmp_path / "b.nc"))
    del first.attrs["array"], again.attrs["array"]  # xarray cannot compare attributes that are arrays with −∞
    xr.testing.assert_identical(first, again)


def test_load_leaves_the_file_free_and_the_data_in_memory(ds, tmp_path):
    path = results.save(ds, tmp_path / "run.nc")
    same = results.load(path)
    with h5netcdf.File(path, "a") as file:  # HDF5 refuses to write to a file that is open elsewhere
        file.attrs["note"] = "reopened"
    path.unlink()
    assert same.wall_time.values.tolist() == [1.5, 2.5]


def test_foreign_readers_see_plain_attributes(ds, tmp_path):
    path = results.save(ds, tmp_path / "run.nc")
    with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False) as plain:
        assert plain.attrs["seed"] == 3
        assert plain.attrs["dirty"] == "json:false"
        assert plain.log_singular_values.attrs["formula"] == "ln σ_i(∂h_T/∂h_t)"


def test_a_write_that_fails_half_way_leaves_the_old_file_whole(ds, tmp_path, monkeypatch):
    path = results.save(ds, tmp_path / "run.nc")
    old = path.read_bytes()

    def half(self, data):
        self.write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        results.save(ds.assign_attrs(seed=4), path)
    assert path.read_bytes() == old
    assert files(tmp_path) == ["run.nc"]


@pytest.mark.parametrize("write", ["save", "text"])
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failing_rename_or_flush_leaves_the_old_file_whole(ds, tmp_path, monkeypatch, write, step):
    path = tmp_path / "run.nc"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError("broken disk")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="broken disk"):
        results.save(ds, path) if write == "save" else results.write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert files(tmp_path) == ["run.nc"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with results.replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(tmp_path) == []


def test_what_netcdf_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        results.save(xr.Dataset({"a": ("x", np.array([object()], dtype=object))}), tmp_path / "run.nc")
    assert files(tmp_path) == []


def test_the_file_is_renamed_from_its_own_folder_after_a_flush(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))

    def record(source, target):
        calls.append(("replace", Path(source).parent == Path(target).parent))
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    results.write_text_atomically(tmp_path / "a.csv", "σ\r\n")
    assert calls[:2] == ["fsync", ("replace", True)]
    assert (tmp_path / "a.csv").read_bytes() == "σ\r\n".encode()  # line ends untouched


def test_a_link_is_followed_and_permissions_are_ordinary(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    results.write_text_atomically(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("write", [results.save, lambda ds, path: results.write_text_atomically(path, "x")])
def test_a_missing_folder_is_named(ds, tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere of .* does not exist; make it first"):
        write(ds, tmp_path / "nowhere" / "run.nc")
    with pytest.raises(IsADirectoryError, match="add a file name"):
        write(ds, tmp_path)
    assert files(tmp_path) == []


def test_wrong_types_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"ds must be an xarray.Dataset, got dict; gl.analyze returns one"):
        results.save({"a": 1}, tmp_path / "run.nc")
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        results.write_text_atomically(tmp_path / "a.txt", b"x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result at .*gone.nc"):
        results.load(tmp_path / "gone.nc")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.nc").write_text("lag,rate\n")
    with pytest.raises(ValueError, match=r"must be a netCDF-4 file written by gl.save, got one that cannot be read"):
        results.load(tmp_path / "a.nc")
    xr.Dataset({"temperature": ("x", [1.0])}).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="without the attribute schema_version, holding temperature"):
        results.load(tmp_path / "b.nc")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(ds, tmp_path, share):
    path = results.save(ds, tmp_path / "run.nc")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cut short: make it again"):
        results.load(path)


@pytest.mark.parametrize("version", [2, 0, "1.0", True])
def test_an_unknown_schema_version_is_refused_both_ways(ds, tmp_path, version):
    with pytest.raises(ValueError, match=r"schema_version of ds must be 1, got"):
        results.save(ds.assign_attrs(schema_version=version), tmp_path / "run.nc")
    assert files(tmp_path) == []
    path = results.save(ds, tmp_path / "run.nc")
    with h5netcdf.File(path, "a") as file:
        file.attrs["schema_version"] = "json:true" if version is True else version
    with pytest.raises(
        ValueError, match=r"schema_version of .*run.nc must be 1, got .*; use the gradlab that wrote it"
    ):
        results.load(path)


def test_a_schema_version_that_is_an_array_is_refused(ds, tmp_path):
    with pytest.raises(ValueError, match=r"schema_version of ds must be 1, got array"):
        results.save(ds.assign_attrs(schema_version=np.array([1, 2])), tmp_path / "run.nc")
    path = results.save(ds, tmp_path / "run.nc")
    with h5netcdf.File(path, "a") as file:
        file.attrs["schema_version"] = np.array([1, 2])
    with pytest.raises(ValueError, match=r"schema_version of .*run.nc must be 1, got array"):
        results.load(path)


@pytest.mark.parametrize("variable", [None, "wall_time"])
def test_an_attribute_that_is_not_json_is_named(ds, tmp_path, variable):
    path = results.save(ds, tmp_path / "run.nc")
    with h5netcdf.File(path, "a") as file:
        (file if variable is None else file[variable]).attrs["note"] = "json:{half"
    with pytest.raises(
        ValueError, match=r"attribute note of .*run.nc must hold JSON after \"json:\", got 'json:{half'"
    ):
        results.load(path)
    with h5netcdf.File(path, "a") as file:  # another schema may mean something else by it
        file.attrs["schema_version"] = 2
    with pytest.raises(ValueError, match="schema_version"):
        results.load(path)


def test_an_hdf5_file_with_an_empty_dataset_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["empty"] = h5py.Empty("f")
        file.attrs["schema_version"] = results.SCHEMA_VERSION
    with pytest.raises(ValueError, match=r"a.nc must be a netCDF-4 file written by gl.save"):
        results.load(tmp_path / "a.nc")


def test_a_folder_is_no_result(tmp_path):
    with pytest.raises(IsADirectoryError, match="path must name a file, got the folder"):
        results.load(tmp_path)


def test_numpy_numbers_within_attributes_are_stored(ds, tmp_path):
    a = {"x": np.int64(3), "y": [np.float32(0.5), np.bool_(True)], "z": np.array([[1.0, -np.inf]])}
    path = results.save(ds.assign_attrs(a=a), tmp_path / "run.nc")
    assert results.load(path).attrs["a"] == {"x": 3, "y": [0.5, True], "z": [[1.0, -np.inf]]}


@pytest.mark.parametrize(("value", "why"), [({"x": object()}, "got object"), ([{np.int64(3): 1}], "keys must be")])
def test_an_attribute_that_cannot_be_stored_is_named(ds, tmp_path, value, why):
    with pytest.raises(TypeError, match=rf"attribute a of ds must hold .* only: {why}"):
        results.save(ds.assign_attrs(a=value), tmp_path / "run.nc")
    ds["age"].attrs["a"] = value
    with pytest.raises(TypeError, match=r"attribute a of age must hold"):
        results.save(ds, tmp_path / "run.nc")
    assert files(tmp_path) == []


def test_provenance_survives_the_file(ds, tmp_path):
    record = results.provenance(seed=7)
    same = results.load(results.save(ds.assign_attrs(record), tmp_path / "run.nc"))
    assert {name: same.attrs[name] for name in record} == record


def test_what_the_system_says_is_no_damage(ds, tmp_path, monkeypatch):
    """A file that cannot be opened now, for too many are, is not to be made again."""
    path = results.save(ds, tmp_path / "run.nc")

    def refuse(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(xr, "open_dataset", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        results.load(path)
