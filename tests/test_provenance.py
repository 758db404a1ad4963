from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradlab
from gradlab import provenance as module
from gradlab.provenance import provenance


def test_provenance_has_its_entries():
    record = provenance(seed=7)
    assert set(record) == {
        *(f"{name}_version" for name in ("gradlab", "python", "numpy", "scipy", "xarray", "keras", "tensorflow")),
        *("seed", "commit", "dirty", "command", "created_utc", "threads", "platform", "processors"),
    }
    assert record["seed"] == 7
    assert provenance()["seed"] == "unset"
    assert record["gradlab_version"] == gradlab.__version__
    assert record["numpy_version"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", str(record["created_utc"]))
    assert record["threads"] >= 1


def test_provenance_names_neither_machine_nor_user_nor_place(monkeypatch):
    root = Path(gradlab.__file__).resolve().parent.parent
    monkeypatch.setattr(
        sys,
        "argv",
        [str(root / "benchmarks" / "run.py"), "--out=/home/ada/x/run.nc", "/srv/ada/in.nc", "-I/opt/ada"],
    )
    record = provenance()
    assert record["command"] == "benchmarks/run.py --out=run.nc in.nc -Iada"
    text = repr(record)
    assert str(root) not in text
    assert not re.search(r"(^|[^\w:/.])/\w", text)  # no absolute path anywhere
    assert socket.gethostname() not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "interactive"),
        ([""], "interactive"),
        (["-c"], "-c"),
        (["/usr/bin/pytest", "-q"], "pytest -q"),
        (["{root}/gradlab/__main__.py", "fig 1", "--lr=0.1"], "gradlab/__main__.py 'fig 1' --lr=0.1"),
        (["run.py", "{root}/out/a.nc", "a/b.nc"], "run.py out/a.nc a/b.nc"),
        (["run.py", "https://example.org/a/b", "1/2", "a,/etc/x"], "run.py https://example.org/a/b 1/2 a,x"),
        (["run.py", r"--out=C:\Users\ada\run.nc"], "run.py --out=run.nc"),
    ],
)
def test_the_command_holds_no_absolute_path(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkout = tmp_path / "checkout"
    assert module._command([a.format(root=checkout) for a in arguments], checkout) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: [Errno 2] no file: '/home/ada/a.nc'", "OSError: [Errno 2] no file: 'a.nc'"),
        ('  File "a.py", line 3, in f\n    x = a / b // c', '  File "a.py", line 3, in f\n    x = a / b // c'),
        ("nats/step, https://example.org/a", "nats/step, https://example.org/a"),
    ],
)
def test_a_text_without_folders(text, expected):
    assert module.without_folders(text) == expected


def git(folder: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_commit_and_dirty_describe_the_code(tmp_path, monkeypatch):
    assert module._git_state(tmp_path) == ("unknown", "unknown")
    git(tmp_path, "init", "-q")
    assert module._git_state(tmp_path) == ("unknown", "unknown")  # no commit yet
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert module._git_state(tmp_path) == (commit, False)
    (tmp_path / "run.nc").write_text("an output does not make the code dirty")
    assert module._git_state(tmp_path) == (commit, False)
    (tmp_path / "pkg" / "a.py").write_text("a = 2\n")
    assert module._git_state(tmp_path) == (commit, True)
    assert module._git_state(tmp_path / "pkg") == ("unknown", "unknown")  # somebody else's repository
    monkeypatch.setenv("PATH", "")
    assert module._git_state(tmp_path) == ("unknown", "unknown")  # no git


def test_a_hook_s_environment_does_not_mislead_git(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "commit", "-qm", name, "--allow-empty")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "b" / ".git"))
    assert module._git_state(tmp_path / "a")[0] == git(tmp_path / "a", "rev-parse", "HEAD")


@pytest.fixture
def forgetful():
    """What is asked for once in a process is asked for again."""
    for cached in (module._version, module._code_state):
        cached.cache_clear()
    yield
    for cached in (module._version, module._code_state):
        cached.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_provenance_never_fails(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(module.metadata, "version", missing)
    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(sys, "argv", [])
    record = provenance()
    assert record["tensorflow_version"] == record["keras_version"] == "unknown"
    assert record["commit"] == record["dirty"] == "unknown"
    assert record["command"] == "interactive"
