"""What `cite` names, and that what it emits is well-formed and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab import citation
from gradlab.experiment import Experiment
from gradlab.variables import VARIABLES

ROOT = Path(__file__).parent.parent
REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "book": {"author", "title", "publisher", "year"},
    "mastersthesis": {"author", "title", "school", "year"},
    "misc": {"author", "title", "year"},
}


def keys(text):
    return re.findall(r"^@\w+\{([^,\s]+),$", text, re.MULTILINE)


def of_run(**fields):
    """Return a dataset with the description of a run."""
    return xr.Dataset(attrs={"experiment": json.dumps(Experiment(**{"cell": "tanh"} | fields).as_dict())})


def test_every_entry_is_well_formed():
    text = citation.REFERENCES.read_text(encoding="utf-8")
    entries = citation.references()
    assert keys(text) == list(entries), "the head of an entry stands on a line of its own"
    assert "\n\n".join(entries.values()) + "\n" == text, "nothing stands between entries"
    assert list(entries) == sorted(set(keys(text))), "in order, none twice"
    for key, entry in entries.items():
        kind, *lines = re.match(r"@(\w+)", entry).group(1), *entry.splitlines()[1:-1]
        fields = dict(re.fullmatch(r"  (\w+) = \{(.*)\},", line).groups() for line in lines)
        assert REQUIRED[kind] <= set(fields), key
        assert entry.endswith("\n}")
        assert entry.count("{") == entry.count("}")
        assert fields["year"] in key or key == "zucchet2024curse"
        assert re.fullmatch(r"\d+(--\d+)?", fields.get("pages", "1")), key
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields.get("doi", "10.1234/x")), key
        assert ("eprint" in fields) == ("archiveprefix" in fields)
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "0000.0000")), key
        surname = re.match(r"[A-Za-z]+", fields["author"].split(",")[0].split()[-1]).group().lower()
        assert key.startswith(surname), key


def test_what_is_cited_is_there_and_what_is_looked_for_exists():
    named = set(citation._OF_VARIABLES) | {one for keys in citation._OF_CELLS.values() for one in keys}
    named |= {one for choices in citation._OF_CHOICES.values() for keys in choices.values() for one in keys}
    named |= {one for keys in citation._OF_REMEDIES.values() for one in keys}
    assert named <= set(citation.references())
    assert {name for names in citation._OF_VARIABLES.values() for name in names} <= set(VARIABLES)


def test_gradlab_comes_first_with_the_facts_of_the_citation_file():
    facts = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    entry = gl.cite()
    assert keys(entry) == ["gradlab"]
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
    assert f'title: "{fields["title"]}"' in facts
    assert f"name: {fields['author'].strip('{}')}" in facts
    assert f"version: {fields['version']}" in facts
    assert f"license: {fields['license']}" in facts


def test_version_and_commit_are_those_of_the_dataset():
    ds = xr.Dataset(attrs={"gradlab_version": "0.0.7", "commit": "abc123"})
    assert "version = {0.0.7}" in gl.cite(ds)
    assert "note = {commit abc123}" in gl.cite(ds)
    assert "note" not in gl.cite(xr.Dataset(attrs={"commit": "unknown"}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log_singular_values", ["bauer2020", "drmac2008", "ogita2005", "stewart1997products"]),
        ("bound_leading_sums", ["horn1950"]),
        ("bound_promise", ["pascanu2013difficulty"]),
        ("mean_field_rate", ["chen2018dynamical", "molgedey1992", "schoenholz2017"]),
        ("latching_eta", ["bengio1994latching"]),
        ("probe_loss", []),
    ],
)
def test_a_variable_brings_its_method(name, expected):
    assert keys(gl.cite(xr.Dataset({name: 0.0}))) == ["gradlab", *expected]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"epochs": 0}, ["alpaydin1998", "le2015"]),
        ({"data": "noise", "epochs": 0}, []),
        ({"data": "noise", "epochs": 0, "cell": "lstm"}, ["gers2000", "hochreiter1997lstm"]),
        ({"data": "noise", "epochs": 0, "cell": "gru", "forget_bias": "chrono"}, ["cho2014", "tallec2018warp"]),
        ({"data": "noise", "epochs": 0, "initializer": "orthogonal"}, ["saxe2014"]),
        ({"data": "adding", "clip_norm": None}, ["arjovsky2016unitary", "hochreiter1997lstm"]),
        (
            {"data": "adding", "clip_norm": 1.0},
            ["arjovsky2016unitary", "hochreiter1997lstm", "pascanu2013difficulty"],
        ),
        ({"data": "vowels", "clip_norm": None, "clip_value": 1.0}, ["kudo1999"]),
    ],
)
def test_a_run_brings_what_it_was_made_of(fields, expected):
    assert keys(gl.cite(of_run(**fields))) == ["gradlab", *expected]


def test_a_store_of_many_runs_brings_all_of_them():
    ds = xr.Dataset(
        coords={
            "cell": ("run", np.array(["tanh", "gru"])),
            "epochs": ("run", [0, 3]),
            "initializer": ("run", ["identity", "gaussian"]),
            "clip_norm": ("run", [np.nan, np.nan]),
        }
    )
    assert keys(gl.cite(ds)) == ["gradlab", "cho2014", "le2015"]
    assert "pascanu2013difficulty" in gl.cite(ds.assign_coords(clip_norm=("run", [np.nan, 1.0])))


def test_an_analysis_says_what_it_rests_on(vanilla):
    found = keys(gl.cite(vanilla))
    assert len(found) == len(set(found))
    assert {"stewart1997products", "oseledets1968", "pascanu2013difficulty"} <= set(found)
    assert "hochreiter1997lstm" not in found
    assert "hochreiter1997lstm" in gl.cite(vanilla.assign_attrs(cell="LSTMCell(32, tanh)"))


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"ds must be an xarray.Dataset, got str.*gl.load"):
        gl.cite("tanh.nc")
