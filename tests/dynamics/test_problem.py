"""The parts that all solvers share, and that their files import each other in one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import explainode.dynamics
from explainode.dynamics import block, problem, solver, torch_diff_eq

ROOM = "explainode.dynamics"


def test_imports_run_in_one_direction_also_those_inside_functions_and_for_types():
    imports = {}
    for file in Path(explainode.dynamics.__file__).parent.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        imports[f"{ROOM}.{file.stem}"] = {node.module for node in nodes if (node.module or "").startswith(f"{ROOM}.")}
    assert len(imports) > 10 and f"{ROOM}.problem" in imports[f"{ROOM}.solver"]
    list(TopologicalSorter(imports).static_order())  # raises CycleError, which names the circle


def test_there_is_one_solution():
    assert solver.Solution is torch_diff_eq.Solution is block.Solution is problem.Solution
