"""The table of all claims, README.md, out of the records under results/.

python papers/table.py            # writes README.md
python papers/table.py --check    # fails if README.md is not what would be written
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from pathlib import Path
from typing import Any

from reproduction import KINDS, NOT_LOCATED, NOT_REPRODUCED, REPRODUCED, UNDECIDED, with_error

from gradlab.citation import references
from gradlab.record import read_record
from gradlab.results import write_text_atomically

FOLDER = Path(__file__).resolve().parent
NAMES = {REPRODUCED: "reproduced", UNDECIDED: "*undecided*", NOT_REPRODUCED: "**not reproduced**"}

HEAD = """# Published numbers, and what gradlab measures

Each script holds one paper against gradlab: it says the setting, what was published and where, measures it, and gives a
verdict. Its record under [`results`](results) has the commit and the versions; the figure beside it is drawn from that
record alone. All are run alike, from the root of the repository:

```bash
.venv/bin/python papers/newman1986exponents.py            # minutes; --quick: seconds; --plot-only: the figure
.venv/bin/python papers/table.py                          # this file
```

**Verdicts.** A value is *reproduced* if the measurement lies within the tolerance, *undecided* if it lies outside by
less than two standard errors, *not reproduced* further away. A bound or a sign (≤, ≥) is *reproduced* if the
measurement and two standard errors lie on the right side, *not reproduced* if all of that lies on the wrong one,
*undecided* in between. A tolerance is derived from the setting: rounding, finite size, a number of standard errors; the
script says which. A value that does not reproduce is a result, and "what differs" is where to look for the reason.

**Kinds.** A *theorem* is proven, a bound, an identity or a definition: a right program cannot fail it, so it tests
gradlab and not the paper. A *value* is a number or a formula set beside a measurement. An *experiment* is something
that the authors saw, done again on a smaller scale.

Small numbers after ± are standard errors, those of few runs widened by Student's t. Where a paper gives a formula and
no number, the formula is evaluated.
`tests/test_papers.py` runs every script with `--quick`. The sources are in [`references.bib`](references.bib).
"""


def table(records: list[dict[str, Any]]) -> str:
    """Return README.md."""
    claims = [claim for record in records for claim in record["claims"]]
    lines = [
        HEAD,
        head(claims, len(records)),
        "",
        "| paper | script | claims | minutes |",
        "|---|---|---|---|",
        *(
            f"| {source(record['paper'])} | [`{record['paper']}.py`]({record['paper']}.py)"
            f" | {tally(record['claims'])} | {record['minutes']:.1f} |"
            for record in records
        ),
        "",
    ]
    for record in records:
        name = record["paper"]
        short = record["provenance"]["commit"][:7]
        lines += [
            f"## {source(name)}",
            "",
            f"{ended(record['title'])} [`{name}.py`]({name}.py), {record['minutes']:.1f} minutes at commit {short}"
            f" ([record](results/{name}.json)).",
            "",
            "| claim | kind | place | published | measured | tolerance | verdict |",
            "|---|---|---|---|---|---|---|",
            *(row(claim) for claim in record["claims"]),
            "",
        ]
        if record["differs"]:
            lines += [f"What differs: {ended(record['differs'])}", ""]
        lines += [f"![{record['title']}](results/{name}.png)", ""]
    return "\n".join(lines)


def source(name: str) -> str:
    """Return authors, year and title of the paper of a script, linked to where it can be read, where that is known.

    Its key in references.bib is the name of the script, or of another one of that author and year.
    """
    entries = references()
    start = re.match(r"\D+\d{4}", name)
    key = name if name in entries else next(key for key in entries if start and key.startswith(start[0]))
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entries[key], re.MULTILINE))
    names = [plain(author.split(",")[0]) for author in fields["author"].split(" and ")]
    authors = f"{names[0]} et al." if len(names) > 3 else " & ".join([", ".join(names[:-1]), names[-1]][-len(names) :])
    link = f"https://arxiv.org/abs/{fields['eprint']}" if "eprint" in fields else ""
    link = f"https://doi.org/{fields['doi']}" if "doi" in fields else link
    said = f"{authors} {fields['year']}"
    return f"{f'[{said}]({link})' if link else said}, *{plain(fields['title'])}*"


def head(claims: list[dict[str, Any]], scripts: int) -> str:
    """Return how many claims there are, of which kind and with which verdict, and how many are not located."""
    lost = sum(not claim["place"] for claim in claims)
    kinds = {kind: [claim for claim in claims if claim["kind"] == kind] for kind in KINDS}
    said = "; ".join(f"{kind}s: {tally(some)}" for kind, some in kinds.items() if some)
    return f"{len(claims)} claims in {scripts} scripts, {lost} of them {NOT_LOCATED} in the paper; {said}."


def tally(claims: list[dict[str, Any]]) -> str:
    """Return how many claims have which verdict: "7 reproduced, 1 undecided"."""
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in NAMES}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def plain(text: str) -> str:
    r"""Return text without the marks of BibTeX: braces, and accents as letters.

    Example:
        >>> plain(r"Drma{\v{c}} and {Lyapunov}")
        'Drmač and Lyapunov'
    """
    accents = {r"\"": "\u0308", r"\'": "\u0301", r"\v": "\u030c"}

    def letter(match: re.Match[str]) -> str:
        return unicodedata.normalize("NFC", match[2] + accents[match[1]])

    return re.sub(r"[{}]", "", re.sub(r"\{(\\[\"'v])\{?(\w)\}?\}", letter, text)).replace("--", "–")


def ended(sentence: str) -> str:
    """Return a sentence with a full stop, if it ends in nothing else."""
    return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."


def row(claim: dict[str, Any]) -> str:
    """Return a claim as a line of the table."""
    sign = {"equal": "", "at most": "≤ ", "at least": "≥ "}[claim["sense"]]
    units = f" {claim['units']}" if claim["units"] else ""
    cells = (
        claim["statement"],
        claim["kind"],
        claim["place"] or f"*{NOT_LOCATED}*",
        f"{sign}{claim['published']:.6g}{units}",
        with_error(claim),
        f"{claim['tolerance']:.2g}",
        NAMES[claim["verdict"]],
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of full runs in a folder, by the year of the paper."""
    found = [read_record(path) for path in folder.glob("*.json") if not path.stem.endswith("_quick")]
    return sorted(found, key=lambda record: (re.findall(r"\d{4}", record["paper"])[0], record["paper"]))


def main() -> None:
    """Write README.md, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if README.md is not what would be written")
    text = table(records(FOLDER / "results"))
    readme = FOLDER / "README.md"
    if not parser.parse_args().check:
        write_text_atomically(readme, text)
    elif not readme.is_file() or readme.read_text(encoding="utf-8") != text:
        raise SystemExit("papers/README.md is not what papers/table.py makes of the records; run it")


if __name__ == "__main__":
    main()
