"""A published number beside its measurement, with a verdict: what every script here hands over, prints and writes."""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from gradlab.provenance import provenance
from gradlab.record import command_line, out_folder, path_of, read_record, write_record

REPRODUCED, UNDECIDED, NOT_REPRODUCED = "reproduced", "undecided", "not reproduced"
KINDS = ("theorem", "value", "experiment")
NOT_LOCATED = "not located"


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, put to the test.

    Attributes:
        statement: what the paper says, in one sentence with its symbols.
        place: where it says so ("section 3.2", "table 1"); "" where that is not located.
        published: the number of the paper.
        measured: ours.
        tolerance: by how much they may differ for the claim to count as reproduced, derived from the setting.
        why: where the tolerance comes from.
        uncertainty: standard error of `measured`, of few runs by `standard_error`; 0 for what is not sampled.
        sense: whether the paper states a value ("equal"), an upper ("at most") or a lower end ("at least").
        units: of the numbers.
        kind: "theorem" for what is proven and a right program cannot fail (bounds, identities, definitions: it tests
            gradlab), "value" for a number or a formula beside a measurement, "experiment" for what the authors saw.
    """

    statement: str
    place: str
    published: float
    measured: float
    tolerance: float
    why: str
    uncertainty: float = 0.0
    sense: Literal["equal", "at most", "at least"] = "equal"
    units: str = ""
    kind: Literal["value", "theorem", "experiment"] = "value"

    def __post_init__(self) -> None:
        """Check what a verdict needs."""
        if self.sense not in ("equal", "at most", "at least"):
            raise ValueError(f'sense must be "equal", "at most" or "at least", got {self.sense!r}')
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        for name in ("published", "tolerance", "uncertainty"):
            if not math.isfinite(getattr(self, name)) or (name != "published" and getattr(self, name) < 0.0):
                raise ValueError(f"{name} of {self.statement!r} must be a finite number, got {getattr(self, name)}")

    @property
    def excess(self) -> float:
        """How far the measurement lies on the wrong side of what was published."""
        difference = self.measured - self.published
        return {"equal": abs(difference), "at most": difference, "at least": -difference}[self.sense]

    @property
    def verdict(self) -> str:
        """What the measurement says of the claim, u being its uncertainty.

        A value is reproduced within the tolerance and undecided while 2u reach back to it. A bound is reproduced if
        the excess and 2u stay within the tolerance, so that no sign is read off noise, not reproduced if the excess
        less 2u lies beyond, and undecided in between.
        """
        reach = 2.0 * self.uncertainty
        if self.excess + (0.0 if self.sense == "equal" else reach) <= self.tolerance:
            return REPRODUCED
        return UNDECIDED if self.excess - reach <= self.tolerance else NOT_REPRODUCED

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the verdict, as JSON has them."""
        return {name: _plain(value) for name, value in asdict(self).items()} | {"verdict": self.verdict}


@dataclass(frozen=True)
class Result:
    """What a script found.

    Attributes:
        claims: the statements, in the order of the paper.
        curves: the numbers that the figure is drawn from, by name: lists, or tables of them.
        differs: what differs from the setting of the paper, and why; "" if nothing does.
    """

    claims: list[Claim]
    curves: dict[str, Any] = field(default_factory=dict)
    differs: str = ""


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of a mean, widened where it is of few values.

        s/√n · t_0.975(n − 1)/1.96

    Two of it reach about as far as the 95 % interval of Student's t. The factor is 2.2 for 3 values, 1.15 for 10.

    Args:
        values: two or more, independent.

    Example:
        >>> round(standard_error([0.0, 1.0, 2.0]) * 3.0**0.5, 3)
        2.195
    """
    array = np.asarray(values, float).ravel()
    n = len(array)
    if n < 2:
        raise ValueError(f"values must hold at least two, got {n}")
    return float(array.std(ddof=1) / np.sqrt(n) * student.ppf(0.975, n - 1) / 1.96)


def digest(script: str | Path) -> str:
    """Return the SHA-256 of a script, by which a record shows that its script has changed since."""
    return hashlib.sha256(Path(script).read_bytes()).hexdigest()


def reproduce(
    script: str,
    description: str | None,
    compute: Callable[[argparse.Namespace], Result],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Run a script of this folder: read the command line, compute, print, write the record, draw from the record.

    Args:
        script: `__file__` of the script, which names the record and is the key in references.bib.
        description: its docstring; the first line is the claim in the table of README.md.
        compute: options (`quick`, `seed`) → `Result`.
        draw: (record, path of the record) → None, from the record alone.
    """
    name = Path(script).stem
    parser = out_folder(command_line(description, "smaller samples, some seconds"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the record that is there")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    options = parser.parse_args()
    path = path_of(name, options)
    if not options.plot_only:
        sha256, started = digest(script), time.perf_counter()  # before the run: what is running, not what it became
        result = compute(options)
        write_record(
            {
                "paper": name,
                "sha256": sha256,
                "title": (description or "").split("\n", 1)[0].rstrip("."),
                "quick": options.quick,
                "minutes": round((time.perf_counter() - started) / 60.0, 2),
                "differs": result.differs,
                "claims": [claim.as_dict() for claim in result.claims],
                "curves": result.curves,
                "provenance": provenance(options.seed),
            },
            path,
        )
    record = read_record(path)
    draw(record, path)
    for claim in record["claims"]:
        print(sentence(claim))
    if record["differs"]:
        print(f"Differs from the paper: {record['differs']}")
    print(f"{record['minutes']:.1f} minutes; record and figure at {path}")


def sentence(claim: dict[str, Any]) -> str:
    """Return a claim as it is printed."""
    sign = {"equal": "", "at most": "≤ ", "at least": "≥ "}[claim["sense"]]
    units = f" {claim['units']}" if claim["units"] else ""
    return (
        f"{claim['verdict'].upper()}: {claim['statement']} ({claim['place'] or NOT_LOCATED})\n"
        f"    {claim['kind']}: published {sign}{claim['published']:.6g}{units}, measured {with_error(claim)}{units},"
        f" tolerance {claim['tolerance']:.2g}: {claim['why']}"
    )


def with_error(claim: dict[str, Any]) -> str:
    """Return the measurement with its standard error, to two digits of the latter."""
    measured, error = claim["measured"], claim["uncertainty"]
    if measured is None:
        return "not a number"
    if not error:
        return f"{measured:.6g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{measured:.{decimals}f} ± {error:.{decimals}f}" if decimals < 8 else f"{measured:.6g} ± {error:.1g}"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: NumPy's numbers as Python's, NaN as null."""
    if isinstance(value, str):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
