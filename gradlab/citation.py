"""What to cite: BibTeX of gradlab, and of the methods that a dataset rests on."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

REFERENCES = Path(__file__).with_name("references.bib")

# key in references.bib → the variables whose definition or method it is
_OF_VARIABLES: dict[str, tuple[str, ...]] = {
    "bauer2020": ("log_singular_values", "log_singular_values_at_lag"),
    "benettin1980": (
        "lyapunov_exponent",
        "held_out_lyapunov_exponent",
        "largest_lyapunov_exponent",
    ),
    "bengio1994latching": ("latching_eta",),
    "chen2018dynamical": ("mean_field_rate",),
    "drmac2008": ("log_singular_values", "log_singular_values_at_lag"),
    "geist1990": ("lyapunov_exponent", "held_out_lyapunov_exponent", "largest_lyapunov_exponent"),
    "henrici1962": ("henrici_departure",),
    "horn1950": ("bound_leading_sums",),
    "johnson1978": ("numerical_radius",),
    "molgedey1992": ("mean_field_rate",),
    "ogita2005": ("log_singular_values", "log_singular_values_at_lag"),
    "oseledets1968": ("lyapunov_exponent", "held_out_lyapunov_exponent", "largest_lyapunov_exponent"),
    "pascanu2013difficulty": (
        "bound_step_norms",
        "bound_slopes",
        "bound_promise",
        "norm_preservation_penalty",
        "clip_norm_ratio",
        "credit_share",
        "log_clipped_weight_gradient_norm",
    ),
    "schoenholz2017": ("mean_field_rate",),
    "stewart1997products": ("log_singular_values", "log_singular_values_at_lag"),
    "trefethen2005": ("kreiss_lower_bound", "transient_peak", "eigenvector_condition"),
    "werbos1990": ("log_gradient_norm", "log_total_gradient_norm", "credit_share"),
    "williams1990": ("truncation_bias",),
}

# field of an experiment → its value → keys
_OF_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "initializer": {"orthogonal": ("saxe2014",), "identity": ("le2015",)},
    "forget_bias": {"chrono": ("tallec2018warp",)},
    "data": {
        "digits": ("alpaydin1998", "le2015"),
        "digits_rows": ("alpaydin1998",),
        "vowels": ("kudo1999",),
        "gunpoint": ("ratanamahatana2005",),
        "adding": ("hochreiter1997lstm", "arjovsky2016unitary"),
        "copy": ("hochreiter1997lstm", "arjovsky2016unitary"),
        "latching": ("bengio1994latching",),
    }
    | dict.fromkeys(
        (
            "addition",
            "multiplication",
            "temporal_order",
            "temporal_order_3bit",
            "memorization",
            "random_permutation",
        ),
        ("hochreiter1997lstm", "pascanu2013difficulty"),
    ),
}
# field of an experiment that is None unless the method is used → keys
_OF_REMEDIES = {
    "clip_norm": ("pascanu2013difficulty",),
    "global_clip_norm": ("pascanu2013difficulty",),
    "omega": ("pascanu2013difficulty",),
    "flossing": ("engelken2023flossing",),
}
_OF_CELLS = {"lstm": ("hochreiter1997lstm", "gers2000"), "gru": ("cho2014",)}


def cite(ds: xr.Dataset | None = None) -> str:
    r"""Return BibTeX of gradlab and of the methods that a dataset used.

    Which methods is read off the variables that are there, the cell, and the description of the run: singular values of
    products, Lyapunov exponents, bounds, mean field, clipping, initialisation, data. What a dataset holds and you do
    not use, you need not cite; drop those variables first (``ds[["decay_rate"]]``).

    Args:
        ds: what `analyze`, `run`, `open_store`, a `GradientTracker` or `load` gave; None for gradlab alone.

    Returns:
        Entries, gradlab first with the version and the commit that the dataset names, the others by key. Fields that
        could not be checked are left out of them.

    Raises:
        TypeError: not a dataset.

    Example:
        >>> import re, xarray as xr
        >>> ds = xr.Dataset({"lyapunov_exponent": ("mode", [0.1])}, attrs={"gradlab_version": "0.1.0"})
        >>> re.findall(r"@\w+{(.*),", cite(ds))
        ['gradlab', 'benettin1980', 'geist1990', 'oseledets1968']
        >>> print(cite())
        @software{gradlab,
          author = {{The gradlab authors}},
          title = {gradlab: gradient analysis in recurrent networks},
          version = {0.1.0},
          license = {MIT},
        }
    """
    if ds is None:
        return _gradlab({})
    if not hasattr(ds, "data_vars") or not hasattr(ds, "attrs"):
        kind = type(ds).__name__
        raise TypeError(f"ds must be an xarray.Dataset, got {kind}; of a file, gl.cite(gl.load(path))")
    entries = references()
    return "\n\n".join([_gradlab(ds.attrs), *(entries[key] for key in sorted(set(_keys(ds))))])


@functools.cache
def references() -> dict[str, str]:
    """Return the entries of references.bib as they stand there, by key.

    Example:
        >>> print(references()["horn1950"].splitlines()[0])
        @article{horn1950,
    """
    entries = re.split(r"^(?=@)", REFERENCES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {entry[entry.index("{") + 1 : entry.index(",")].strip(): entry.strip() for entry in entries if entry.strip()}


def _keys(ds: xr.Dataset) -> Iterator[str]:
    """Give the keys of what a dataset rests on, some more than once."""
    for key, variables in _OF_VARIABLES.items():
        if any(name in ds.variables for name in variables):
            yield key
    words = {word.lower() for one in _values(ds, "cell") for word in re.findall(r"[A-Za-z]+", str(one))}
    for cell, keys in _OF_CELLS.items():
        if any(word.startswith(cell) for word in words):  # "lstm", or a description: "LSTMCell(32, tanh)"
            yield from keys
    for name, choices in _OF_CHOICES.items():
        for value in _values(ds, name):
            yield from choices.get(str(value), ())
    if any(epochs for epochs in _values(ds, "epochs")):  # what acts on a training needs one
        for name, keys in _OF_REMEDIES.items():
            if any(value is not None and value == value for value in _values(ds, name)):
                yield from keys


def _values(ds: xr.Dataset, name: str) -> list[Any]:
    """Return what the runs in a dataset have for a field of their description: of one run, or of a store's."""
    found = [json.loads(ds.attrs.get("experiment", "{}")).get(name), ds.attrs.get(name)]
    if name in ds.coords:
        found += ds.coords[name].to_numpy().ravel().tolist()
    return [value for value in found if value is not None]


def _gradlab(attrs: Any) -> str:
    """Return the entry of gradlab itself, of the version that made a dataset."""
    from gradlab import __version__

    fields = {
        "author": "{The gradlab authors}",
        "title": "gradlab: gradient analysis in recurrent networks",
        "version": str(attrs.get("gradlab_version", __version__)),
    }
    if attrs.get("commit", "unknown") != "unknown":
        fields["note"] = f"commit {attrs['commit']}"
    fields["license"] = "MIT"
    return "\n".join(["@software{gradlab,", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])
