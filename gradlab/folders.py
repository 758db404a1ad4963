"""Where files lie: a folder of this machine, or one behind an fsspec URL. Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradlab.results import replacing

STALE = 24 * 3600.0  # seconds after which a file that is written for a while is taken to have lost its writer


class LocalFolder:
    """A folder of a mounted file system."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.location = str(self.path)

    def make(self) -> None:
        """Make the folder, if it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Return the names of the files; none if there is no such folder."""
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.path)
        return []

    def exists(self, name: str) -> bool:
        """Whether there is such a file, as of now."""
        return (self.path / name).is_file()

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file to a temporary name, flush it, and put it in place."""
        with replacing(self.path / name) as temporary:
            temporary.write_bytes(data)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """Give what HDF5 can open."""
        if not self.exists(name):
            raise FileNotFoundError(f"no {name} in {self.location}")
        yield self.path / name

    def text(self, name: str) -> str:
        """Return the text of a file."""
        return (self.path / name).read_text(encoding="utf-8")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Make a file as young as if it were written now."""
        (self.path / name).touch()

    def sweep_out(self, left: re.Pattern[str]) -> None:
        """Remove what killed writers left a day ago: the files of which `left` is the whole name."""
        for name in self.names():
            if left.fullmatch(name):
                with contextlib.suppress(OSError):
                    if time.time() - (self.path / name).stat().st_mtime > STALE:
                        self.remove(name)


class RemoteFolder:
    """A folder behind an fsspec URL: s3://bucket/runs, memory://runs."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ImportError(f'the store {url} needs fsspec: pip install "gradlab[sweep]"') from error
        self.location = url.rstrip("/")
        self.files, path = fsspec.core.url_to_fs(url)
        self.root = path.rstrip("/")

    def make(self) -> None:
        """Make the folder, if it is not there."""
        self.files.makedirs(self.root, exist_ok=True)

    def names(self) -> list[str]:
        """Return the names of the files; none if there is no such folder."""
        self.files.invalidate_cache()  # others write, too
        with contextlib.suppress(FileNotFoundError):
            return [path.rsplit("/", 1)[-1] for path in self.files.ls(self.root, detail=False)]
        return []

    def exists(self, name: str) -> bool:
        """Whether there is such a file, as of now."""
        self.files.invalidate_cache()
        return bool(self.files.exists(f"{self.root}/{name}"))

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file to a temporary name, and move it into place."""
        temporary = f"{self.root}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.files.pipe_file(temporary, bytes(data))
            self.files.mv(temporary, f"{self.root}/{name}")
        except BaseException:
            with contextlib.suppress(Exception):
                self.files.rm_file(temporary)
            raise

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """Give what HDF5 can open: a file that fetches the blocks that are read."""
        with self.files.open(f"{self.root}/{name}", "rb") as file:
            yield file

    def text(self, name: str) -> str:
        """Return the text of a file."""
        return str(self.files.cat_file(f"{self.root}/{name}").decode("utf-8"))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")

    def touch(self, name: str) -> None:
        """Do nothing: nothing is removed for its age here."""

    def sweep_out(self, left: re.Pattern[str]) -> None:
        """Leave everything: not every store tells when a file was written."""


def folder_at(location: str | os.PathLike[str]) -> LocalFolder | RemoteFolder:
    """Return the folder at a path or an fsspec URL."""
    text = os.fspath(location)
    scheme, found, rest = text.partition("://")
    if not found:
        return LocalFolder(text)
    return LocalFolder(rest) if scheme in ("file", "local") else RemoteFolder(text)
