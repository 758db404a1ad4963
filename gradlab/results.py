"""Results on disk: netCDF files that are whole or absent, and the record of what made them."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
import xarray as xr

SCHEMA_VERSION = 1
UNKNOWN = "unknown"

# netCDF attributes are text and numbers only. What else Python has goes in as JSON behind this prefix.
_JSON = "json:"


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
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"ds must be an xarray.Dataset, got {type(ds).__name__}; gl.analyze returns one")
    stored = ds.copy(deep=False).drop_encoding()
    _check_schema(stored.attrs.setdefault("schema_version", SCHEMA_VERSION), "ds")
    stored.attrs = _encoded(stored.attrs, "ds")
    for name, variable in stored.variables.items():
        variable.attrs = _encoded(variable.attrs, str(name))
    with replacing(path) as temporary:
        stored.to_netcdf(temporary, engine="h5netcdf")
    return Path(path)


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
    try:
        # decode_timedelta=False: a run time with the unit "seconds" is a number here, not a timedelta
        ds = xr.load_dataset(path, engine="h5netcdf", decode_timedelta=False)
    except PermissionError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} must be a netCDF-4 file written by gl.save, got one that cannot be read ({error});"
            " it is of another kind or was cut short: make it again"
        ) from error
    ds = ds.drop_encoding()
    if "schema_version" not in ds.attrs:
        raise ValueError(
            f"{path} must be a gradlab result, got a netCDF file without the attribute schema_version,"
            f" holding {', '.join(map(str, list(ds.variables)[:5])) or 'nothing'}; use xarray.open_dataset"
        )
    # first of all: another schema may encode its attributes in another way
    _check_schema(_decoded({"schema_version": ds.attrs["schema_version"]}, str(path))["schema_version"], str(path))
    ds.attrs = _decoded(ds.attrs, str(path))
    for name, variable in ds.variables.items():
        variable.attrs = _decoded(variable.attrs, f"{name} in {path}")
    return ds


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


def provenance(seed: int | None = None) -> dict[str, str | int]:
    """Describe what is about to make a result: versions, commit, command, time, and machine family.

    It never fails, and holds no host name, user name or absolute path: a result can be published as it is.
    `commit` and `dirty` are those of the gradlab checkout that is run, and "unknown" for an installed copy;
    `dirty` says whether code or configuration differs from that commit (outputs do not count).

    Args:
        seed: the seed of the run, "unset" if there is none.

    Returns:
        Entries ready to be attributes of a dataset: seed, gradlab_version, python_version, numpy_version,
        scipy_version, xarray_version, keras_version, tensorflow_version, commit, dirty, command, created_utc
        (ISO 8601), threads (processors this process may use), platform.

    Examples:
        >>> record = provenance(seed=3)
        >>> record["seed"], record["numpy_version"] == np.__version__
        (3, True)
    """
    import gradlab

    checkout = Path(__file__).resolve().parent.parent
    commit, dirty = _git_state(checkout)
    return {
        "seed": "unset" if seed is None else int(seed),
        "gradlab_version": gradlab.__version__,
        "python_version": platform.python_version(),
        **{f"{name}_version": _version(name) for name in ("numpy", "scipy", "xarray", "keras")},
        "tensorflow_version": _version("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tf-nightly"),
        "commit": commit,
        "dirty": dirty,
        "command": _command(sys.argv, checkout),
        "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": _threads(),
        "platform": f"{platform.machine() or UNKNOWN} {platform.system() or UNKNOWN}",
    }


def _check_schema(version: Any, where: str) -> None:
    """Raise ValueError unless `version` is one that this gradlab reads."""
    if isinstance(version, bool) or not isinstance(version, int | np.integer) or version != SCHEMA_VERSION:
        raise ValueError(
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


def _version(*distributions: str) -> str:
    """Return the version of the first installed of `distributions`, without importing it."""
    for name in distributions:
        with contextlib.suppress(Exception):  # metadata of a broken installation raises all sorts
            return str(metadata.version(name))
    return UNKNOWN


def _threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_state(checkout: Path) -> tuple[str, bool | str]:
    """Return (commit, dirty) of `checkout`, or twice "unknown" if it is not the root of a git work tree."""
    # A hook's GIT_DIR would point git at another repository; without optional locks, status writes nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout.strip()

    try:
        # gradlab installed into an environment inside somebody's repository must not report that repository
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return UNKNOWN, UNKNOWN
        changes = git("status", "--porcelain", "--", "*.py", "*.cfg", "*.toml", "*.mplstyle")
        return git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.SubprocessError, ValueError):
        return UNKNOWN, UNKNOWN


# an absolute path: at the start, after a separator or after a one-letter option; "//" is left alone (URLs)
_ABSOLUTE = re.compile(r"""(?:(?<=^-\w)|(?<![^=,;:'"\s(\[]))(?:/(?!/)|[A-Za-z]:[\\/])[^=,;'"\s)\]]*""")


def _command(arguments: list[str], checkout: Path) -> str:
    """Return the command line, every absolute path made relative to `checkout` or cut to its last name."""

    def shorten(path: str) -> str:
        pure: PurePath = Path(path) if path.startswith("/") else PureWindowsPath(path)
        with contextlib.suppress(ValueError, OSError):
            return Path(path).resolve().relative_to(checkout).as_posix()
        return pure.name

    if not arguments or not arguments[0]:
        return "interactive"
    script = arguments[0] if arguments[0].startswith("-") else shorten(os.path.abspath(arguments[0]))
    rest = (_ABSOLUTE.sub(lambda match: shorten(match.group()), text) for text in arguments[1:])
    return shlex.join([script, *rest])
