"""papers/gradlab.md from its template and the records of results, so that no number in it goes stale.

The template, gradlab.md.j2, holds the words; every number in it is an expression over the JSON records that benchmarks
and papers have written (`benchmarks`, `papers`: name → record) and over what is worked out from them below.

    python papers/writeup.py           # write papers/gradlab.md
    python papers/writeup.py --check   # fail if that would change it
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import numpy as np

from gradlab.results import write_text_atomically
from gradlab.statistics import cluster_bootstrap

# what makes the slack of (γσ₁)ᵏ: how far each bound in the chain is from the next, and the last from the gradient
SLACK: dict[str, tuple[str, str | None]] = {
    "slopes below γ": ("(γσ₁)ᵏ", "Π (max φ′ σ₁)"),
    "within the step": ("Π (max φ′ σ₁)", "Π‖J‖, mean chain"),
    "between steps": ("Π‖J‖, mean chain", "σ₁(P)"),
    "direction of the gradient": ("σ₁(P)", None),
}
HERE = Path(__file__).resolve().parent
TEMPLATE, WRITTEN = HERE / "gradlab.md.j2", HERE / "gradlab.md"


def records(folder: Path) -> dict[str, Any]:
    """Return the records of full runs in a folder by name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if not path.stem.endswith("_quick"):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


def significant(value: float, digits: int = 2) -> str:
    """Return a number with so many digits, and powers of ten where it is very small or large.

    Example:
        >>> significant(0.01259), significant(1465.7), significant(2.27e-13), significant(0.0)
        ('0.013', '1500', '2.3·10⁻¹³', '0')
    """
    if value == 0.0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < 5:
        rounded = round(value, digits - 1 - exponent)
        return f"{rounded:.{max(0, digits - 1 - exponent)}f}".replace("-", "−")
    mantissa = f"{value / 10.0**exponent:.{digits - 1}f}".replace("-", "−")
    return f"{mantissa}·10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def interval(row: dict[str, Any], name: str, decimals: int = 3, joint: str = "_") -> str:
    """Return "mean [low, high]" of the entries `name`, `name`_low and `name`_high of a row, or with another joint.

    Example:
        >>> interval({"rms": 0.4312, "rms_low": 0.41, "rms_high": -0.002}, "rms", 2)
        '0.43 [0.41, 0.00]'
    """
    parts = [row[key] for key in (name, f"{name}{joint}low", f"{name}{joint}high")]
    if any(part is None for part in parts):
        return "—"
    middle, low, high = (f"{part + 0.0:.{decimals}f}".replace("-", "−") for part in parts)
    return f"{middle} [{low}, {high}]".replace(f"−{0:.{decimals}f}", f"{0:.{decimals}f}")


def cell(record: dict[str, Any], statement: str, network: str) -> dict[str, Any]:
    """Return what `bounds_vs_truth.py` found of a statement in a class of networks."""
    found = [one for one in record["cells"] if one["statement"] == statement and one["class"] == network]
    if len(found) != 1:
        raise ValueError(f"the record must hold {statement!r} of {network!r} once, got it {len(found)} times")
    return found[0]


def spread(record: dict[str, Any], statement: str, number: str, start: str) -> str:
    """Return "least to largest" of a number over the classes of networks whose names start so."""
    values = [cell(record, statement, name)[number] for name in record["classes"] if name.startswith(start)]
    return f"{min(values):.3f} to {max(values):.3f}"


def slack(record: dict[str, Any], term: str, network: str) -> dict[str, float]:
    """Return a term of the slack of (γσ₁)ᵏ in a class of networks, nats per step, with its interval over networks."""
    wider, tighter = SLACK[term]
    values = np.array(cell(record, wider, network)["errors"])
    if tighter is not None:
        values = values - np.array(cell(record, tighter, network)["errors"])
    networks = np.repeat(np.arange(len(values)), [len(row) for row in values])
    found = cluster_bootstrap(np.ravel(values), networks)
    return {"mean": float(np.mean(values)), "mean_low": found.low, "mean_high": found.high}


def largest_slack(record: dict[str, Any]) -> dict[str, list[str]]:
    """Return the classes of networks by what makes most of the bound's slack there, where there is any to print."""
    found: dict[str, list[str]] = {}
    for name in record["classes"]:
        terms = {term: slack(record, term, name)["mean"] for term in SLACK}
        if sum(terms.values()) >= 0.0005:  # else all are 0.000: the bound is sharp
            found.setdefault(max(terms, key=lambda term: terms[term]), []).append(name)
    return found


def most_slack(record: dict[str, Any], term: str) -> float:
    """Return the largest that a term of the slack comes to in any class of networks."""
    return max(slack(record, term, name)["mean"] for name in record["classes"])


def fix(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the row of a fix in the record of `fixes_compared.py`."""
    (row,) = [one for one in record["fixes"] if one["fix"] == name]
    return dict(row)


def change(record: dict[str, Any], name: str, number: str) -> float:
    """Return by how much a number of a fix differs from that of the naive start."""
    return float(fix(record, name)[number] - fix(record, "tanh, naive")[number])


def least_and_most(record: dict[str, Any], number: str, names: list[str]) -> str:
    """Return "least to most" of what is lost in some fixes: of a number that is negative."""
    lost = [abs(fix(record, name)[number]) for name in names]
    return f"{min(lost):.3f} to {max(lost):.3f}"


def solving(record: dict[str, Any]) -> list[str]:
    """Return the settings of which more than half of the networks solve the task."""
    return [row["fix"] for row in record["fixes"] if row["solved"] > row["seeds"] / 2]


def others(record: dict[str, Any], names: list[str]) -> list[str]:
    """Return the settings that are not among some."""
    return [row["fix"] for row in record["fixes"] if row["fix"] not in names]


def trained_alike(record: dict[str, Any]) -> list[str]:
    """Return the settings in which training lengthens the steps and worsens the passage between them, by the means."""

    def grown(row: dict[str, Any], name: str) -> float:
        return float(row[f"{name} after"] - row[f"{name} before"])

    return [row["fix"] for row in record["fixes"] if grown(row, "step_norms") > 0 > grown(row, "between_steps")]


def ends(test: dict[str, Any]) -> str:
    """Return "estimate [low, high]" of a test of `vanishing_gradients.py`."""
    row = {"value": test["estimate"], "value_low": test["low"], "value_high": test["high"]}
    return interval(row, "value")


def errors(cases: dict[str, Any], method: str) -> dict[str, float]:
    """Return the largest error of a method in ln σ by case, where it gave a number."""
    found = {name: case["errors"][method] for name, case in cases.items()}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(float(value))}


def written() -> str:
    """Return the write-up, filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"significant": significant}
    functions: list[Callable[..., Any]] = [interval, errors, median, cell, spread, slack, largest_slack, most_slack]
    functions += [ends, fix, change, least_and_most, solving, others, trained_alike]
    environment.globals |= {function.__name__: function for function in functions} | {"slack_terms": list(SLACK)}
    template = environment.get_template(TEMPLATE.name)
    return template.render(benchmarks=records(HERE.parent / "benchmarks" / "results"), papers=records(HERE / "results"))


def main() -> None:
    """Write it, or check what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if there is anything to write")
    options = parser.parse_args()
    text = written()
    if not options.check:
        write_text_atomically(WRITTEN, text)
    elif WRITTEN.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{WRITTEN} is not what its template and the records give; run python papers/writeup.py")


if __name__ == "__main__":
    main()
