"""COMPILED_WITH of the files of `gradlab.kernels`: what they were compiled with.

python tests/compiled_with.py     # write it anew where it has changed
"""

from __future__ import annotations

import ast
import graphlib
import hashlib
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "gradlab"
FILES = {"graded", "registers", "row_blocks", "scales"} | {
    f"kernels/{path.stem}" for path in SOURCE.glob("kernels/*.py")
}
LINE = re.compile(r'^COMPILED_WITH = "(.*)"$', re.MULTILINE)


def path_of(name: str) -> Path:
    """Return the file of a name."""
    return SOURCE / f"{name}.py"


def used_by(name: str) -> set[str]:
    """Return those of the files that this one imports from."""
    tree = ast.parse(path_of(name).read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {module.removeprefix("gradlab.").replace(".", "/") for module in modules} & FILES


def in_order() -> list[str]:
    """Return the files, each after those that it uses."""
    return list(graphlib.TopologicalSorter({name: sorted(used_by(name)) for name in sorted(FILES)}).static_order())


def digest_for(name: str) -> str:
    """Return the digest of what a file uses, and of what that uses."""
    waiting, seen = set(used_by(name)), set()
    while waiting:
        seen.add(one := waiting.pop())
        waiting |= used_by(one) - seen
    return hashlib.sha256(b"".join(path_of(one).read_bytes() for one in sorted(seen))).hexdigest()[:16]


def main() -> None:
    """Write what has changed, from the bottom up: a digest written is a change to the files above."""
    for name in in_order():
        text = path_of(name).read_text(encoding="utf-8")
        renewed = LINE.sub(f'COMPILED_WITH = "{digest_for(name)}"', text)
        if renewed != text:
            path_of(name).write_text(renewed, encoding="utf-8")
            print(name)


if __name__ == "__main__":
    main()
