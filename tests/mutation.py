"""Do the tests notice when the code is wrong? Mutants of the theory, each against the tests that run through it.

    python tests/mutation.py [--sample N] [--seed S] [--jobs J] [--out FILE] [PATTERN …]

mutmut (pip install gradlab[mutation]) changes one thing at a time, a sign, a loop's end, an argument, a constant, in
a copy of the files that `only_mutate` of setup.cfg names. One line there adds a file; its tests are those called
test_<file>*.py, or test_<folder>*.py for a package, and test_arguments.py. Text alone, the lines of an error message,
is left as it is. Prints the part of the mutants that a test failed for, with its binomial interval where they are a
sample, and every survivor; fails below 90 %. tests/mutation_survivors.md judges those of the last full run.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
WANTED = 0.9
KILLED = {1, 3, 24, 36, 152, 255, -24}  # a test failed, or ran far beyond its time
# slow to start, and not safe to fork
HEAVY = re.compile(r"\b(tensorflow|keras|cell_cases|benchmarks)\b|import gradlab as gl")


def copied(folder: Path) -> None:
    """Copy what mutmut needs, and name the tests of each file that is to be mutated."""
    leave = shutil.ignore_patterns("__pycache__", ".hypothesis", ".pytest_cache", "mutants")
    for name in ("gradlab", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", folder)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    stems = {Path(line).parent.name if line.endswith("*") else Path(line).stem for line in _lines(config)}
    tests = {path for stem in stems for path in (folder / "tests").glob(f"test_{stem}*.py")}
    tests |= {folder / "tests" / "test_arguments.py"}
    light = sorted(path.name for path in tests if not HEAVY.search(path.read_text(encoding="utf-8")))
    config["mutmut"]["pytest_add_cli_args_test_selection"] = "\n" + "\n".join(f"tests/{name}" for name in light)
    with open(folder / "setup.cfg", "w", encoding="utf-8") as file:
        config.write(file)


def _lines(config: configparser.ConfigParser) -> list[str]:
    return [line for line in config["mutmut"]["only_mutate"].splitlines() if line]


def mutmut(folder: Path, *arguments: str, show: bool = False) -> str:
    """Run mutmut in the copy; return what it printed."""
    environment = os.environ | {"CI": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}  # CI: fixed examples
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    where = None if show else subprocess.PIPE
    done = subprocess.run(command, cwd=folder, env=environment, stdout=where, stderr=where, text=True, check=False)
    return done.stdout or ""


def outcomes(folder: Path) -> dict[str, int | None]:
    """Return the exit code of the tests of every mutant that was made, None where they have not been run."""
    found: dict[str, int | None] = {}
    for path in sorted((folder / "mutants").rglob("*.meta")):
        found |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="which mutants, as gradlab.bounds.*; all if left out")
    parser.add_argument("--sample", type=int, help="how many mutants to draw; all if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="a file for the survivors with their changes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        mutmut(folder, "run", "--max-children", "1", "no such mutant")  # makes them all, and then finds none to run
        names = sorted(outcomes(folder))
        if options.patterns:
            parts = [re.compile(pattern.replace(".", r"\.").replace("*", ".*")) for pattern in options.patterns]
            names = [one for one in names if any(part.fullmatch(one) for part in parts)]
        if not names:
            print("there are no mutants: do the tests pass, and is mutmut there?", file=sys.stderr)
            return 2
        drawn = options.sample is not None and options.sample < len(names)
        chosen = random.Random(options.seed).sample(names, options.sample) if drawn else names
        mutmut(folder, "run", "--max-children", str(options.jobs), *chosen, show=True)
        codes = {one: code for one, code in outcomes(folder).items() if one in set(chosen)}
        killed, tested = sum(code in KILLED for code in codes.values()), len(codes)
        survivors = sorted(one for one, code in codes.items() if code not in KILLED)
        print(f"\n{killed} of {tested} mutants killed: {killed / tested:.1%}", end="")
        if drawn:
            low, high = binomtest(killed, tested).proportion_ci()
            print(f" [{low:.1%}, {high:.1%}] of {len(names)}, seed {options.seed}", end="")
        print("\n" + "\n".join(survivors))
        if options.out:
            options.out.write_text("\n".join(mutmut(folder, "show", one) for one in survivors), encoding="utf-8")
    return 0 if killed >= WANTED * tested else 1


if __name__ == "__main__":
    sys.exit(main())
