"""The scripts of papers/ reach with --quick the verdicts of their committed records, and the frame judges right."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import ttest_1samp

from gradlab.citation import REFERENCES, references

ROOT = Path(__file__).parent.parent
PAPERS = ROOT / "papers"
sys.path.insert(0, str(PAPERS))

import table  # noqa: E402
import writeup  # noqa: E402
from reproduction import (  # noqa: E402
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Claim,
    digest,
    sentence,
    standard_error,
    with_error,
)

SCRIPTS = sorted(path.stem for path in PAPERS.glob("*[0-9][0-9][0-9][0-9]*.py"))
RECORDED = [name for name in SCRIPTS if (PAPERS / "results" / f"{name}.json").is_file()]


def committed(name):
    return json.loads((PAPERS / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_quick_reaches_the_verdicts_of_the_record(name, tmp_path, monkeypatch, capsys, close_figures):
    """In this process: TensorFlow's import takes longer than most of them. What is only trained in full stands last."""
    monkeypatch.setattr(sys, "argv", [str(PAPERS / f"{name}.py"), "--quick", "--out", str(tmp_path)])
    runpy.run_path(str(PAPERS / f"{name}.py"), run_name="__main__")
    record = json.loads((tmp_path / f"{name}_quick.json").read_text(encoding="utf-8"))
    verdicts = [claim["verdict"] for claim in record["claims"]]
    assert verdicts, "a script makes at least one claim"
    if name in RECORDED:
        expected = [claim["verdict"] for claim in committed(name)["claims"]][: len(verdicts)]
    else:
        expected = [REPRODUCED] * len(verdicts)
    said = capsys.readouterr().out
    assert verdicts == expected, said
    for claim in record["claims"]:
        assert claim["why"], "a tolerance says where it comes from"
        assert f"{claim['verdict'].upper()}: {claim['statement']}" in said
    for kind in ("png", "pdf"):
        assert (tmp_path / f"{name}_quick.{kind}").stat().st_size > 1000
    assert record["title"]
    assert record["sha256"] == digest(PAPERS / f"{name}.py")


@pytest.mark.parametrize("name", RECORDED)
def test_a_committed_record_is_of_a_full_run_with_its_figure(name):
    record = committed(name)
    assert record["paper"] == name
    assert not record["quick"]
    assert "--quick" not in record["provenance"]["command"]
    assert record.get("sha256") == digest(PAPERS / f"{name}.py"), f"{name}.py has changed since its record; run it"
    for kind in ("png", "pdf"):
        assert (PAPERS / "results" / f"{name}.{kind}").is_file()
    for claim in record["claims"]:
        if claim["measured"] is not None:
            again = Claim(**{key: value for key, value in claim.items() if key != "verdict"})
            assert again.verdict == claim["verdict"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_its_source(name):
    author_and_year = re.match(r"\D+\d{4}", name).group()
    assert any(key.startswith(author_and_year) for key in references())
    assert author_and_year[-4:] in table.source(name)
    assert (PAPERS / f"{name}.py").read_text(encoding="utf-8").startswith('"""')


def test_the_write_up_is_what_its_template_and_the_records_give():
    assert writeup.written() == writeup.WRITTEN.read_text(encoding="utf-8"), "run python papers/writeup.py"


def test_numbers_in_the_write_up():
    assert [writeup.significant(value) for value in (0.0126, 1466.0, 2.27e-13, 0.0, -9.96)] == [
        "0.013",
        "1500",
        "2.3·10⁻¹³",
        "0",
        "−10",
    ]
    row = {"rms": 0.4312, "rms_low": -0.41, "rms_high": -0.002}
    assert writeup.interval(row, "rms", 2) == "0.43 [−0.41, 0.00]"
    assert writeup.interval(row | {"rms_low": None}, "rms", 2) == "—"


def test_there_is_one_list_of_sources():
    assert (PAPERS / "references.bib").read_bytes() == REFERENCES.read_bytes()


@pytest.mark.skipif(not RECORDED, reason="no record is committed")
def test_the_table_is_what_its_command_makes():
    assert (PAPERS / "README.md").read_text(encoding="utf-8") == table.table(table.records(PAPERS / "results")), (
        "run papers/table.py"
    )


def claim(measured, **fields):
    usual = {"statement": "x", "place": "", "published": 1.0, "tolerance": 0.25, "why": "test"}
    return Claim(**usual | fields, measured=measured)


@pytest.mark.parametrize(
    ("sense", "measured", "verdict"),
    [
        ("equal", 1.25, REPRODUCED),
        ("equal", 0.75, REPRODUCED),
        ("equal", 1.5, UNDECIDED),
        ("equal", 0.5, UNDECIDED),
        ("equal", np.nextafter(1.5, 2), NOT_REPRODUCED),
        ("at most", -100.0, REPRODUCED),
        ("at most", 1.0, REPRODUCED),
        ("at most", np.nextafter(1.0, 2), UNDECIDED),
        ("at most", 1.25, UNDECIDED),
        ("at most", 1.5, UNDECIDED),
        ("at most", np.nextafter(1.5, 2), NOT_REPRODUCED),
        ("at least", 100.0, REPRODUCED),
        ("at least", 1.0, REPRODUCED),
        ("at least", np.nextafter(1.0, 0), UNDECIDED),
        ("at least", 0.75, UNDECIDED),
        ("at least", 0.5, UNDECIDED),
        ("at least", 0.49, NOT_REPRODUCED),
        ("equal", math.nan, NOT_REPRODUCED),
        ("at most", math.nan, NOT_REPRODUCED),
        ("at least", math.nan, NOT_REPRODUCED),
        ("at most", math.inf, NOT_REPRODUCED),
        ("at most", -math.inf, REPRODUCED),
        ("equal", -math.inf, NOT_REPRODUCED),
    ],
)
def test_a_verdict_at_its_edges(sense, measured, verdict):
    assert claim(measured, sense=sense, uncertainty=0.125).verdict == verdict


@pytest.mark.parametrize("sense", ["equal", "at most"])
def test_without_uncertainty_nothing_is_undecided(sense):
    assert claim(1.25, sense=sense).verdict == REPRODUCED
    assert claim(np.nextafter(1.25, 2), sense=sense).verdict == NOT_REPRODUCED


def test_a_noisy_sign_is_undecided():
    pairs = [0.5, 0.5, -0.25]  # of the right sign on average, as every other triple of noise
    sign = {"published": 0.0, "tolerance": 0.0, "uncertainty": standard_error(pairs)}
    assert claim(np.mean(pairs), sense="at least", **sign).verdict == UNDECIDED
    assert claim(np.mean(pairs), sense="at most", **sign).verdict == UNDECIDED


@pytest.mark.parametrize("n", [2, 3, 6, 10, 1000])
def test_a_standard_error_of_few_values_gives_the_interval_of_student(n):
    """An independent route: SciPy's own interval of a mean."""
    values = np.random.default_rng(n).standard_normal(n)
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert 2 * 1.96 * standard_error(values) == pytest.approx(high - low, rel=1e-12)


def test_one_value_has_no_standard_error():
    with pytest.raises(ValueError, match="values must hold at least two, got 1"):
        standard_error([1.0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sense": "about"}, 'sense must be "equal"'),
        ({"kind": "law"}, "kind must be one of"),
        ({"published": math.nan}, "published of 'x' must be a finite number"),
        ({"tolerance": -0.1}, "tolerance of 'x'"),
        ({"tolerance": math.inf}, "tolerance of 'x'"),
        ({"uncertainty": -1.0}, "uncertainty of 'x'"),
        ({"uncertainty": math.nan}, "uncertainty of 'x'"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        claim(1.0, **fields)


def test_a_claim_is_stored_as_json_has_it():
    stored = claim(np.float64(math.nan), uncertainty=np.float32(0.5)).as_dict()
    assert stored["measured"] is None
    assert stored["uncertainty"] == 0.5
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert claim(math.inf).as_dict()["measured"] is None


@pytest.mark.parametrize(
    ("measured", "uncertainty", "text"),
    [
        (1.23456789, 0.0, "1.23457"),
        (1.23456789, 0.0123, "1.235 ± 0.012"),
        (1234.5, 12.0, "1234 ± 12"),
        (1234.5, 150.0, "1234 ± 150"),
        (0.5, 2e-9, "0.5 ± 2e-09"),
        (-0.0234567, 0.00096, "-0.02346 ± 0.00096"),
        (None, 0.1, "not a number"),
    ],
)
def test_a_measurement_is_shown_to_two_digits_of_its_error(measured, uncertainty, text):
    assert with_error({"measured": measured, "uncertainty": uncertainty}) == text


def test_a_claim_is_printed_in_full():
    fields = {"sense": "at least", "units": "nats", "kind": "theorem"}
    text = sentence(claim(0.5, **fields, place="table 1").as_dict())
    told = "    theorem: published ≥ 1 nats, measured 0.5 nats, tolerance 0.25: test"
    assert text == f"NOT REPRODUCED: x (table 1)\n{told}"
    assert sentence(claim(0.5, **fields).as_dict()) == f"NOT REPRODUCED: x (not located)\n{told}"


def record(**fields):
    one = claim(0.5, sense="at most", statement="|P| is small", place="section 2", units="nats").as_dict()
    return {
        "paper": "pascanu2013difficulty",
        "title": "Does it?",
        "minutes": 1.23,
        "differs": "all",
        "claims": [one],
        "provenance": {"commit": "0123456789abc"},
    } | fields


def test_a_row_of_the_table():
    made = table.table([record()])
    assert "| \\|P\\| is small | value | section 2 | ≤ 1 nats | 0.5 | 0.25 | reproduced |" in made
    assert "1 claims in 1 scripts, 0 of them not located in the paper; values: 1 reproduced." in made
    assert "[Pascanu, Mikolov & Bengio 2013](https://arxiv.org/abs/1211.5063), *On the difficulty" in made
    assert "[`pascanu2013difficulty.py`](pascanu2013difficulty.py), 1.2 minutes at commit 0123456" in made
    assert "What differs: all." in made
    assert "What differs" not in table.table([record(differs="")])


def test_every_verdict_is_counted():
    verdicts = [REPRODUCED, REPRODUCED, UNDECIDED, NOT_REPRODUCED]
    assert table.tally([{"verdict": one} for one in verdicts]) == "2 reproduced, 1 undecided, 1 not reproduced"


def test_the_kinds_are_counted_apart():
    claims = [
        claim(1.0).as_dict(),
        claim(9.0, place="table 1").as_dict(),
        claim(1.0, kind="experiment", place="table 1").as_dict(),
        claim(1.0, kind="theorem").as_dict(),
    ]
    assert table.head(claims, 2) == (
        "4 claims in 2 scripts, 2 of them not located in the paper;"
        " theorems: 1 reproduced; values: 1 reproduced, 1 not reproduced; experiments: 1 reproduced."
    )
    assert "| x | theorem | *not located* | 1 | 1 | 0.25 | reproduced |" in table.table([record(claims=claims)])


def test_records_stand_in_the_order_of_their_years(tmp_path):
    for name in ("vogt2022lyapunov", "newman1986exponents", "bengio1994latching"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record(paper=name)), encoding="utf-8")
    (tmp_path / "newman1986exponents_quick.json").write_text("{}", encoding="utf-8")
    found = [one["paper"] for one in table.records(tmp_path)]
    assert found == ["newman1986exponents", "bengio1994latching", "vogt2022lyapunov"]


@pytest.mark.parametrize(
    ("key", "start"),
    [
        ("newman1986exponents", "[Newman 1986](https://doi.org/10.1007/BF01205544), *The distribution of Lyapunov"),
        ("drmac2008", "[Drmač & Veselić 2008](https://doi.org/10.1137/050639193), *New fast and accurate Jacobi SVD"),
        ("gers2000", "[Gers, Schmidhuber & Cummins 2000](https://doi.org/"),
        ("vogt2022lyapunov", "[Vogt et al. 2022](https://doi.org/"),
        ("stewart1997products", "Stewart 1997, *A new algorithm"),
        ("pascanu2013walls", "[Pascanu, Mikolov & Bengio 2013](https://arxiv.org/abs/1211.5063), *On the difficulty"),
        ("le2015", "[Le, Jaitly & Hinton 2015](https://arxiv.org/abs/1504.00941)"),
    ],
)
def test_a_source_is_named_and_linked(key, start):
    assert table.source(key).startswith(start)


def test_plain_text_has_no_marks_of_bibtex():
    assert not any(mark in table.source(key) for key in references() for mark in "{}\\")


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    assert not plt.get_fignums()
