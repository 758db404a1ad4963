"""Results on disk: netCDF files that are whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

from gradlab.provenance import provenance

__all__ = [
    "SCHEMA_VERSION",
    "ForeignFile",
    "as_bytes",
    "content_hash",
    "load",
    "opened",
    "provenance",
    "read",
    "replacing",
    "save",
    "write_text_atomically",
]

SCHEMA_VERSION = 1
# what HDF5 and xarray make of files that are damaged or of another kind
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError)

# netCDF attributes are text and numbers only. What else Python has goes in as JSON behind this prefix.
_JSON = "json:"


class ForeignFile(ValueError):
    """A file that may be whole, but is no result of this gradlab: nobody but its owner should replace it."""


def save(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a result to a netCDF-4 file: `path` then holds the whole new file, or still what it held before.

    Infinities, NaN, booleans, None, lists and dictionaries in attributes come back from `load` as they were, but NumPy
    numbers and arrays inside of lists and dictionaries come back as Python numbers and lists.
    A dataset without a `schema_version` is given the present one.

    Args:
        ds: the result, as `gl.analyze` returns it.
        path: the file, usually ending in ".nc"; its folder must exist.

    Returns:
        The path written.

    Raises:
        TypeError: `ds` is not an xarray.Dataset, or an attribute holds what JSON cannot.
        ValueError: `ds` declares a schema_version that this gradlab does not know.
        FileNotFoundError: the folder does not exist.

    Examples:
        >>> import tempfile
        >>> ds = xr.Dataset({"log_step_norm": ("time", [np.nan, -0.5, -np.inf])}, attrs={"dirty": False})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     same = load(save(ds, Path(folder) / "run.nc"))
        >>> same["log_step_norm"].values
        array([ nan, -0.5, -inf])
        >>> same.attrs
        {'dirty': False, 'schema_version': 1}
    """
    data = as_bytes(ds)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def as_bytes(ds: xr.Dataset) -> memoryview:
    """Return the netCDF-4 file of a result, made in memory: HDF5 may crash the process when a disk is full.

    Raises:
        TypeError: `ds` is not an xarray.Dataset, or an attribute holds what JSON cannot.
        ValueError: `ds` declares a schema_version that this gradlab does not know.
    """
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"ds must be an xarray.Dataset, got {type(ds).__name__}; gl.analyze returns one")
    stored = ds.copy(deep=False).drop_encoding()
    _check_schema(stored.attrs.setdefault("schema_version", SCHEMA_VERSION), "ds")
    stored.attrs = _encoded(stored.attrs, "ds")
    for name, variable in stored.variables.items():
        variable.attrs = _encoded(variable.attrs, str(name))
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        stored.dump_to_store(xr.backends.H5NetCDFStore(file))
    return buffer.getbuffer()


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result written by `save` into memory and close the file.

    Args:
        path: the file.

    Returns:
        The dataset as it was saved.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: `path` is a folder.
        ValueError: the file is damaged, is not a gradlab result, or has an unknown schema_version.

    Examples:
        >>> load("no_such_run.nc")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no result at no_such_run.nc; gl.save(ds, path) writes one
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"path must name a file, got the folder {path}; add a file name")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no result at {path}; gl.save(ds, path) writes one")
    with opened(path, str(path)) as ds:
        return read(ds, str(path))


@contextlib.contextmanager
def opened(source: Any, where: str) -> Iterator[xr.Dataset]:
    """Give a result whose values are not read yet, and close it afterwards.

    Args:
        source: a path, or a binary file that can be read and sought in.
        where: what to call it in messages.

    Yields:
        The dataset, its attributes decoded.

    Raises:
        ValueError: as `load` does, but for damaged values, which `read` finds.
        OSError: the file may be whole, but cannot be read now.
    """
    try:
        # decode_timedelta=False: a run time with the unit "seconds" is a number here, not a timedelta
        ds = xr.open_dataset(source, engine="h5netcdf", decode_timedelta=False, cache=False)
    except _DAMAGED as error:
        _let_through(error)
        raise _unreadable(where, error) from error
    with ds:
        if "schema_version" not in ds.attrs:
            raise ForeignFile(
                f"{where} must be a gradlab result, got a netCDF file without the attribute schema_version,"
                f" holding {', '.join(map(str, list(ds.variables)[:5])) or 'nothing'}; use xarray.open_dataset"
            )
        # first of all: another schema may encode its attributes in another way
        _check_schema(_decoded({"schema_version": ds.attrs["schema_version"]}, where)["schema_version"], where)
        plain = ds.drop_encoding()
        plain.attrs = _decoded(ds.attrs, where)
        for name, variable in plain.variables.items():
            variable.attrs = _decoded(variable.attrs, f"{name} in {where}")
        yield plain


def read(ds: xr.Dataset, where: str) -> xr.Dataset:
    """Return an `opened` dataset with its values in memory.

    Raises:
        ValueError: a value cannot be read.
    """
    try:
        return ds.load()
    except _DAMAGED as error:
        _let_through(error)
        raise _unreadable(where, error) from error


def _let_through(error: Exception) -> None:
    """Raise what the operating system says, which has a number; what HDF5 itself finds wrong with a file has none."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _unreadable(where: str, error: Exception) -> ValueError:
    """Return what to raise for a file that is damaged."""
    return ValueError(
        f"{where} must be a netCDF-4 file written by gl.save, got one that cannot be read ({error});"
        " it is of another kind or was cut short: make it again"
    )


def content_hash(ds: xr.Dataset) -> str:
    """Return the SHA-256 of the numbers of a dataset: names, dims, types and bytes, not its attributes.

    Two runs that gave the same numbers bit for bit have the same hash, whenever and wherever they were made.

    Examples:
        >>> a = xr.Dataset({"rate": ("batch", [0.1, np.nan])}, attrs={"created_utc": "yesterday"})
        >>> content_hash(a) == content_hash(a.assign_attrs(created_utc="today"))
        True
        >>> content_hash(a) == content_hash(a + 1e-18), content_hash(a) == content_hash(a + 1e-16)
        (True, False)
    """
    digest = hashlib.sha256()
    for name in sorted(map(str, ds.variables)):
        variable = ds[name].variable
        values = np.asarray(variable.values)
        if values.dtype.kind in "OUST":  # text: its type changes on the way through a file
            data = json.dumps(values.astype(str).tolist(), ensure_ascii=False).encode()
            kind = "text"
        else:
            data, kind = np.ascontiguousarray(values).tobytes(), values.dtype.newbyteorder("<").str
        digest.update(json.dumps([name, list(map(str, variable.dims)), values.shape, kind]).encode())
        digest.update(data)
    return digest.hexdigest()


def write_text_atomically(path: str | os.PathLike[str], text: str) -> Path:
    r"""Write text (CSV, JSON, LaTeX) as UTF-8: `path` then holds all of it, or still what it held before.

    Args:
        path: the file; its folder must exist.
        text: what to write; line ends are written as they are.

    Returns:
        The path written.

    Raises:
        TypeError: `text` is not a string.
        FileNotFoundError: the folder does not exist.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text_atomically(Path(folder) / "rates.csv", "lag,rate\n1,-0.3\n").read_text()
        'lag,rate\n1,-0.3\n'
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}; json.dumps makes one")
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and put it in place of `path` if nothing was raised.

    The temporary file lies in the same folder because only a rename within one file system is atomic. It is
    removed when the body raises. Its name ends in ".tmp": state the format to what would guess it.

    Args:
        path: the file to be made or replaced; a symbolic link is followed.

    Yields:
        The temporary path.

    Raises:
        FileNotFoundError: the folder of `path` does not exist, or the body wrote nothing.
        IsADirectoryError: `path` is a folder.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {Path(path).parent} of {path} does not exist; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"path must name a file, got the folder {path}; add a file name")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself is on disk only once the folder is; some systems cannot open a folder, and need not.
    with contextlib.suppress(OSError):
        _flush(target.parent)


def _check_schema(version: Any, where: str) -> None:
    """Raise ValueError unless `version` is one that this gradlab reads."""
    if isinstance(version, bool) or not isinstance(version, int | np.integer) or version != SCHEMA_VERSION:
        raise ForeignFile(
            f"schema_version of {where} must be {SCHEMA_VERSION}, got {version!r};"
            " use the gradlab that wrote it (attribute gradlab_version), or make the result again"
        )


def _encoded(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return attributes that netCDF can hold; what it cannot hold becomes JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"got {type(value).__name__}")

    encoded: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, np.bool_):
            value = bool(value)
        if value is None or isinstance(value, bool | list | tuple | dict):
            try:
                value = _JSON + json.dumps(value, ensure_ascii=False, default=plain)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"attribute {name} of {where} must hold text, numbers, None, lists and dictionaries only: {error};"
                    " convert it to one of these"
                ) from error
        elif isinstance(value, str) and value.startswith(_JSON):
            value = _JSON + json.dumps(value, ensure_ascii=False)  # text that only looks encoded
        encoded[str(name)] = value
    return encoded


def _decoded(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Undo `_encoded`, and turn NumPy scalars into Python numbers."""
    decoded: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, str) and value.startswith(_JSON):
            try:
                value = json.loads(value[len(_JSON) :])
            except ValueError as error:
                raise ValueError(
                    f'attribute {name} of {where} must hold JSON after "{_JSON}", got {value[:60]!r} ({error});'
                    " the file was changed by another program: make it again"
                ) from error
        elif isinstance(value, np.generic):
            value = value.item()
        decoded[str(name)] = value
    return decoded


def _flush(path: Path) -> None:
    """Force what was written to `path` (a file or a folder) out to the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
