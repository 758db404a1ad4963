"""A store of runs: a folder with one netCDF file for each result, and one JSON file for each failure. No index."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from gradlab.experiment import Experiment
from gradlab.folders import folder_at
from gradlab.provenance import provenance, without_folders
from gradlab.results import ForeignFile, as_bytes, content_hash, opened, read

RESULT, FAILURE, TOKEN = ".nc", ".failed.json", ".sweep-"
# what killed writers leave: tokens, and the temporary files of tokens, results and failures
_LEFT = re.compile(
    r"\.sweep-[0-9a-f]{16}|\.(\.sweep-[0-9a-f]{16}|[a-z]+-[a-z0-9_]+-[0-9a-f]{16}\.(nc|failed\.json))\.[0-9a-f]{8}\.tmp"
)
REUSE = ("any", "same-code", "none")


class StoreError(OSError):
    """The store, and not a run, is in the way: it is full, read-only, or not the one that is meant."""


class Store:
    """The results and failures of described runs, each in a file that is whole or absent.

    What is in the store is what the files say: their names are the keys of the experiments, their attributes the
    descriptions. So that any number of processes may write at once, nothing else is kept.

    Args:
        location: a folder of this machine, or an fsspec URL such as s3://bucket/runs or memory://runs.

    Example:
        >>> from gradlab.stamps import stamped
        >>> store, experiment = Store("memory://store-example"), Experiment("tanh", gain=0.9)
        >>> store.write(experiment, stamped(xr.Dataset({"rate": -0.1}), experiment, 0.5))
        >>> store.finished() == [experiment.key], float(store.load(experiment)["rate"])
        (True, -0.1)
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.folder = folder_at(location)
        self.location = self.folder.location

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    def finished(self) -> list[str]:
        """Return the keys that have a result, sorted; whether the files are sound shows when they are read.

        Raises:
            StoreError: there is a file where the folder should be.
        """
        return sorted(
            name.removesuffix(RESULT) for name in self._names() if name.endswith(RESULT) and not name.startswith(".")
        )

    def write(self, experiment: Experiment, ds: xr.Dataset) -> None:
        """Put a result in place, and forget an earlier failure of the same run.

        Raises:
            StoreError: the store is full or cannot be written to.
            TypeError: an attribute of `ds` is none that a file can hold.
        """
        data = as_bytes(ds)
        with self._explained():
            self.folder.write(experiment.key + RESULT, data)
            self.folder.remove(experiment.key + FAILURE)

    def write_failure(self, experiment: Experiment, error: str, trace: str) -> None:
        """Put on record that a run failed, with its traceback, and without the folders of this machine."""
        record: dict[str, Any] = {"experiment": experiment.as_dict()}
        record |= {"error": without_folders(error), "traceback": without_folders(trace)}
        text = json.dumps(record | {"provenance": provenance(experiment.seed)}, indent=1, ensure_ascii=False) + "\n"
        with self._explained():
            self.folder.write(experiment.key + FAILURE, text.encode("utf-8"))

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return what failed and has no result since: key → {"experiment", "error", "traceback", "provenance"}.

        A run that was made again and failed is among them, although its older result is still there.
        """
        names, found = set(self._names()), {}
        for name in sorted(names):
            key = name.removesuffix(FAILURE)
            if name.endswith(FAILURE) and not name.startswith("."):
                try:
                    record = dict(json.loads(self.folder.text(name)))
                except FileNotFoundError:  # made well since the names were read
                    continue
                except (ValueError, OSError) as error:
                    record = {"experiment": {}, "error": f"{name} cannot be read: {error}", "traceback": ""}
                if key + RESULT not in names or not self._has_newer(key, record):
                    found[key] = record
        return found

    def _has_newer(self, key: str, failure: dict[str, Any]) -> bool:
        """Whether a result is newer than a failure, which its writer was killed before it could remove."""
        try:
            with self.opened(key) as ds:
                made = str(ds.attrs.get("created_utc", ""))
        except (ValueError, OSError):
            return False
        return made > str(dict(failure.get("provenance") or {}).get("created_utc", ""))

    def _names(self) -> list[str]:
        """Return the names of the files."""
        try:
            return self.folder.names()
        except NotADirectoryError as error:
            raise StoreError(
                f"the store must be a folder, got {self.location}, which is a file or lies in one; name another"
            ) from error

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[xr.Dataset]:
        """Give a result whose values are not read yet.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, foreign, or of an unknown version.
        """
        where = f"{self.location}/{key}{RESULT}"
        with self.folder.reading(key + RESULT) as source, opened(source, where) as ds:
            yield ds

    def load(self, experiment: Experiment | str) -> xr.Dataset:
        """Return a result, checked against the hash of its numbers.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, foreign, or of an unknown version.
        """
        key = experiment if isinstance(experiment, str) else experiment.key
        with self.opened(key) as found:
            ds = read(found, f"{self.location}/{key}{RESULT}")
        if "content_hash" in ds.attrs and ds.attrs["content_hash"] != content_hash(ds):
            raise ValueError(
                f"{self.location}/{key}{RESULT} holds other numbers than were written: delete it, then make the"
                " call again that made it, or sweep with reuse='none'"
            )
        return ds

    def refusal(self, experiment: Experiment, reuse: str, made_by: str) -> str | None:
        """Say why a run must be made although the store may have a result for it; None if the result will do.

        Args:
            experiment: the run.
            reuse: "any" result of the description, one of the "same-code" (version, commit, and no changes since), or
                "none".
            made_by: the name of the function that makes the results.

        Raises:
            ForeignFile: the file of that name is no result of this run, or of a version to come, and is not touched.
        """
        where = f"{self.location}/{experiment.key}{RESULT}"
        try:
            with self.opened(experiment.key) as ds:
                then = ds.attrs
        except FileNotFoundError:
            return ""
        except ForeignFile:
            raise
        except ValueError as error:
            if reuse == "none":
                return ""
            return f"{where} is not usable and is made again: {error}"
        if then.get("experiment_hash") != experiment.hash:
            raise ForeignFile(f"{where} holds another run than its name says; move it away, or use another store")
        if then.get("made_by", made_by) != made_by:
            raise ForeignFile(
                f"{where} was made by {then['made_by']}, not by {made_by}; a store holds the results of one function:"
                " use another store"
            )
        if reuse == "none":
            return ""
        why = other_code(then, provenance()) if reuse == "same-code" else None
        return why and f"{where} was made {why} and is made again"

    def made_in(self, experiment: Experiment, token: str) -> bool:
        """Whether the result of a run was made by the sweep of this token."""
        with contextlib.suppress(FileNotFoundError, ValueError), self.opened(experiment.key) as ds:
            return bool(ds.attrs.get("sweep") == token)
        return False

    def begin(self, token: str) -> None:
        """Make the store ready, and leave a token that other processes must see if theirs is the same store.

        Raises:
            StoreError: nothing can be written there.
        """
        with self._explained():
            self.folder.make()
            self.folder.sweep_out(_LEFT)
            self.folder.write(TOKEN + token, b"of a sweep in progress\n")

    def renew(self, token: str) -> None:
        """Make the token young again, so that no other sweep takes it for one that was left behind."""
        with contextlib.suppress(OSError):
            self.folder.touch(TOKEN + token)

    def end(self, token: str) -> None:
        """Take the token away."""
        with contextlib.suppress(OSError):
            self.folder.remove(TOKEN + token)

    def check(self, token: str) -> None:
        """Raise unless this process sees the store in which `begin` left a token.

        Raises:
            StoreError: it sees another one, or none.
        """
        if not self.folder.exists(TOKEN + token):
            raise StoreError(
                f"the store {self.location} must be the same for the sweep and its workers, but a worker does not see"
                " what the sweep wrote there; use a folder that all machines mount, or a URL such as s3://bucket/runs"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever is raised in writing into what can be done about it; not every store raises OSErrors."""
        try:
            yield
        except Exception as error:
            number = getattr(error, "errno", None)
            if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                what, do = "is full", "free some space"
            elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
                what, do = "cannot be written to", "make it writable, or name another folder"
            else:
                what, do = "failed", "see to it"
            raise StoreError(
                f"the store {self.location} {what} ({error}); every finished run is safe:"
                f" {do}, then make the same call again, which runs only what is missing"
            ) from error


def other_code(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Say in which way a result was made by other code than the present; None if it was not.

    While the present code has uncommitted changes itself, nothing tells one change from another.
    """
    for name, what in (("gradlab_version", "gradlab"), ("commit", "commit")):
        if then.get(name) != now[name]:
            return f"by {what} {then.get(name)}, not {now[name]},"
    if then.get("dirty") is True and now["dirty"] is False:
        return "with uncommitted changes"
    return None


def as_store(store: Store | str | os.PathLike[str]) -> Store:
    """Return a store, given one or where it is."""
    if isinstance(store, Store):
        return store
    if not isinstance(store, str | Path | os.PathLike):
        raise TypeError(f"store must be a folder or an fsspec URL, got {store!r}")
    return Store(store)
