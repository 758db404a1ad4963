"""What a script that measures does around its own question: a command line, a record in JSON, a figure of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradlab.results import write_text_atomically


def results_folder() -> Path:
    """Return the folder results/ beside the script that runs."""
    return Path(sys.argv[0]).resolve().parent / "results"


def command_line(description: str | None, quick: str) -> argparse.ArgumentParser:
    """Return a parser that shows the module's docstring and has --quick, described by `quick`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def out_folder(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add --out, a folder, to a parser and return it."""
    parser.add_argument(
        "--out", type=Path, default=results_folder(), help="folder to write to (default: results/ beside the script)"
    )
    return parser


def path_of(name: str, options: argparse.Namespace) -> Path:
    """Return where the record of a benchmark lies; a quick one has a name of its own."""
    folder: Path = options.out
    return folder / f"{name}{'_quick' if options.quick else ''}.json"


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Return a record that was written."""
    if not path.is_file():
        raise SystemExit(f"no record at {path}; run the benchmark without the option to draw alone")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


@contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes [rows, columns] in gradlab's style, and save it beside the record as PDF and PNG."""
    import matplotlib.pyplot as plt  # a benchmark of memory must not hold it

    from gradlab.figures import save_figure, style

    with style():
        made, axes = plt.subplots(rows, columns, squeeze=False, **kwargs)
        yield made, axes
        save_figure(made, path.with_suffix(""))
        plt.close(made)
