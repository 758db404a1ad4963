"""The record of what made a result: versions, commit, machine family, threads; no names of places or people."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PurePath, PureWindowsPath

import threadpoolctl

UNKNOWN = "unknown"


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
        (ISO 8601), threads (processors this process may use), platform, processors (of the machine).

    Examples:
        >>> record = provenance(seed=3)
        >>> record["seed"], record["gradlab_version"] != "unknown"
        (3, True)
    """
    import gradlab

    checkout = Path(__file__).resolve().parent.parent
    commit, dirty = _code_state(checkout)
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
        "processors": os.cpu_count() or 1,
    }


def thread_pools() -> dict[str, int]:
    """Return how many threads the numerical libraries of this process use, by library; 0 stands for their default.

    Examples:
        >>> sorted(thread_pools())[0] in ("blas", "openmp", "tensorflow")
        True
    """
    pools: dict[str, int] = {}
    for one in threadpoolctl.threadpool_info():
        pools[one["user_api"]] = max(pools.get(one["user_api"], 1), int(one["num_threads"]))
    if "tensorflow" in sys.modules:  # not imported for this alone: a cluster's client has no need of it
        threading = sys.modules["tensorflow"].config.threading
        inside = threading.get_intra_op_parallelism_threads()
        pools["tensorflow"] = int(inside or os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
    return pools


@functools.cache  # 3 ms of reading for each of several packages, each run
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


@functools.cache  # 20 ms of git for each of 10^5 runs; and what is imported is the code of then, not of now
def _code_state(checkout: Path) -> tuple[str, bool | str]:
    """Return (commit, dirty) of the code that this process runs, asked for once."""
    return _git_state(checkout)


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
_ABSOLUTE = re.compile(r"""(?:(?<=^-\w)|(?<![^=,;:'"\s(\[]))(?:/(?!/)|[A-Za-z]:[\\/])[^=,;'"\s)\]]+""")


def _command(arguments: list[str], checkout: Path) -> str:
    """Return the command line, every absolute path made relative to `checkout` or cut to its last name."""
    if not arguments or not arguments[0]:
        return "interactive"
    script = arguments[0] if arguments[0].startswith("-") else _shortened(os.path.abspath(arguments[0]), checkout)
    return shlex.join([script, *(without_folders(text, checkout) for text in arguments[1:])])


def without_folders(text: str, checkout: Path | None = None) -> str:
    """Return a text with every absolute path made relative to `checkout`, or cut to its last name.

    Args:
        text: any.
        checkout: a folder; None for the one that gradlab lies in.

    Examples:
        >>> without_folders("No such file: '/home/ada/runs/a.nc'")
        "No such file: 'a.nc'"
    """
    root = checkout or Path(__file__).resolve().parent.parent
    return _ABSOLUTE.sub(lambda match: _shortened(match.group(), root), text)


def _shortened(path: str, checkout: Path) -> str:
    """Return an absolute path relative to `checkout`, or its last name."""
    pure: PurePath = Path(path) if path.startswith("/") else PureWindowsPath(path)
    with contextlib.suppress(ValueError, OSError):
        return Path(path).resolve().relative_to(checkout).as_posix()
    return pure.name
