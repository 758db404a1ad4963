"""Import directions: one way only, and no TensorFlow where only numbers or figures are made."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gradlab

SOURCE = Path(gradlab.__file__).parent


def dotted(path):
    """Return the name of a module below gradlab; a package has the name of its folder, gradlab itself `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {dotted(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}

HEAVY = {"tensorflow", "keras", "xarray", "matplotlib", "pandas"}
CORE = ["validation", "products", "spectrum", "bounds", "predictions", "decay", "lyapunov"]
CORE += ["horizon", "attractor", "streaming", "statistics", "resolvent", "convergence"]  # and all that they import
WITHOUT_TENSORFLOW = ["__init__", "plotting", "results", "tasks", "comparison"]
WITHOUT_TENSORFLOW += ["experiment", "descriptions", "sweeps", "cluster", "collection", "tracking_dataset", "citation"]


def imported(tree, everywhere):
    """Return the modules that a file imports: by any statement, or only by those run at import."""
    names = set()
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide from this test"
            names.add(node.module)
            if node.module.split(".")[0] == "gradlab":
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return names


def siblings(name):
    """Return which modules of gradlab a module imports when it is imported."""
    return {part.removeprefix("gradlab.") for part in imported(MODULES[name], False)} & MODULES.keys()


def closure(name):
    """Return everything that importing a module imports, gradlab's modules followed."""
    seen, waiting = set(), {name}
    while waiting:
        one = waiting.pop()
        seen.add(one)
        packages = {one.rpartition(".")[0]} & MODULES.keys()  # importing a module runs the package it is in
        waiting |= (siblings(one) | packages) - seen
    return seen, {part.split(".")[0] for one in seen for part in imported(MODULES[one], everywhere=False)}


@pytest.mark.parametrize("name", CORE)
def test_the_numerical_core_needs_numpy_and_scipy_only(name):
    modules, packages = closure(name)
    assert "numpy" in packages
    assert not packages & HEAVY
    for one in modules:  # nor inside a function
        assert not {part.split(".")[0] for part in imported(MODULES[one], everywhere=True)} & HEAVY


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_results_figures_and_tasks_need_no_tensorflow(name):
    _, packages = closure(name)
    assert not packages & {"tensorflow", "keras"}


def test_imports_run_one_way():
    graph = {name: siblings(name) - {"__init__"} for name in MODULES}
    assert tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle in it


def run(code):
    """Run Python in a fresh process and return what it printed, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent)
    return json.loads(done.stdout.splitlines()[-1])


def test_names_that_need_no_tensorflow_do_not_import_it():
    code = """
import json, sys
import gradlab
names = ["log_singular_values", "lyapunov_exponents", "recurrent_spectrum", "spectral_radius", "bounds", "predictions"]
names += ["fit_decay", "decay_budget", "load", "save", "plot", "tasks", "Experiment", "sweep", "open_store", "cite"]
for name in names:
    getattr(gradlab, name)
print(json.dumps([name for name in ("tensorflow", "keras") if name in sys.modules]))
"""
    assert run(code) == []


def test_every_public_name_is_itself_in_whatever_order_it_is_used():
    """A submodule sets its own name in the package when it is imported: no function may share a name with one."""
    code = """
import json, types
import gradlab
names = sorted(gradlab._HOME, reverse=True)
first = {name: getattr(gradlab, name) for name in names}
modules = sorted(name for name in names if isinstance(getattr(gradlab, name), types.ModuleType))
print(json.dumps([modules, all(getattr(gradlab, name) is first[name] for name in names)]))
"""
    modules, same = run(code)
    assert set(modules) <= {"bounds", "plot", "predictions", "tasks", "testing", "schedules", "fixes"}
    assert same
    clashes = {name for name, home in gradlab._HOME.items() if name in MODULES and name != home}
    clashes |= {name for name, home in gradlab._HOME.items() if name == home and name not in modules}
    assert not clashes
    assert set(gradlab.__all__) == set(gradlab._HOME)


def test_a_name_that_is_not_there_says_what_is():
    with pytest.raises(AttributeError, match=r"gradlab has no 'rolout'; it has .*'rollout'"):
        _ = gradlab.rolout
    assert {"rollout", "analyze"} <= set(dir(gradlab))
