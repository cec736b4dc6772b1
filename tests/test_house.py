"""The house rules of the code: who may import whom, and that ``passes`` and ``targets`` are found as ours."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import hapi_tvm
from tests.checkout import FOLDERS, ROOT, copy_checkout


@dataclass(frozen=True)
class Layer:
    """modules: its members; a package stands for all that it holds. layers, packages: what they may import."""

    modules: tuple[str, ...]
    layers: tuple[str, ...]
    packages: tuple[str, ...]


STAGES = (
    "algorithms branch_arrays calibration choices choosing compiling costing dataset_files datasets exits "
    "export_check features frontend_onnx frontend_torch heads importing inplace kernel_check kernel_database "
    "kernel_search kernels measuring network overheads reference reference_ops timing training tuning turns verifying "
    "whole_run"
)
LAYERS = {
    "facade": Layer(("hapi_tvm",), (), ()),
    "records": Layer(
        (
            "addresses", "errors", "fresh_name", "hashing", "jsonl", "pool", "processor", "recordio", "records",
            "runfolder", "sla_text", "timeline",
        ),
        ("records",),
        ("numpy",),
    ),
    "terminal": Layer(("progress",), ("records",), ("rich",)),
    "compat": Layer(("tvm_compat",), ("records",), ("tvm", "tvm_ffi")),
    "passes": Layer(("passes",), ("records", "compat", "passes"), ("numpy", "tvm", "tvm_ffi")),
    "targets": Layer(("targets",), ("records", "compat", "targets"), ("numpy", "tvm", "tvm_ffi")),
    "certify": Layer(("certify",), ("records", "certify"), ("numpy", "scipy")),
    "search": Layer(("search",), ("records", "search"), ("numba", "numpy", "optuna", "pymoo", "scipy", "xgboost")),
    "runtime": Layer(("board_server", "runtime"), ("records",), ("numpy", "tvm", "tvm_ffi")),
    "stages": Layer(
        tuple(STAGES.split()),
        ("records", "terminal", "compat", "passes", "targets", "search", "runtime", "stages"),
        ("PIL", "google", "numpy", "onnx", "torch", "tvm", "tvm_ffi"),
    ),
    "top": Layer(
        (
            "backbone_build", "building", "cli", "cli_board", "cli_options", "cli_search", "cli_target", "devices",
            "porting", "report", "researching",
        ),
        (
            "facade", "records", "terminal", "compat", "passes", "targets", "certify", "search", "runtime", "stages",
            "top",
        ),
        ("click", "jinja2", "numpy", "rich", "tvm"),
    ),
}
# The stages that train or interpret; what measures, compiles or reads data runs without torch.
WITH_TORCH = {"calibration", "frontend_torch", "heads", "reference", "reference_ops", "training"}
RUNTIME_FROM_TVM = {"tvm", "tvm.relax.VirtualMachine"}


def modules() -> dict[str, pathlib.Path]:
    """Every module of the three folders, by the name it is imported by."""
    found = {}
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [*place.split("/"), *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, inside functions too; of a name in a module, both."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The module of ours that an imported name lies in; None where it lies elsewhere."""
    if name.partition(".")[0] != "hapi_tvm":
        return None
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def layer_of(module: str) -> str:
    short = module.removeprefix("hapi_tvm.")
    for layer, rule in LAYERS.items():
        if short in rule.modules or short.partition(".")[0] in rule.modules:
            return layer
    pytest.fail(f"{module} is in no layer: add it to LAYERS in tests/test_house.py")


IMPORTS = {name: set(imported(ast.parse(path.read_text()))) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_layer_may(module):
    rule = LAYERS[layer_of(module)]
    for name in IMPORTS[module]:
        neighbour, package = own(name), name.partition(".")[0]
        if neighbour is not None:
            assert layer_of(neighbour) in rule.layers, f"{module} imports {name}"
        elif package not in sys.stdlib_module_names:
            assert package in rule.packages, f"{module} imports {name}"


def test_every_name_in_the_table_is_a_module():
    known = {name.removeprefix("hapi_tvm.").partition(".")[0] for name in MODULES}
    listed = [name for rule in LAYERS.values() for name in rule.modules]
    assert sorted(listed) == sorted(known)


def test_no_import_goes_in_a_circle():
    """Imports inside functions count, so that a cycle cannot be hidden there."""
    graph = {
        module: {neighbour for name in names if (neighbour := own(name)) not in (None, module)}
        for module, names in IMPORTS.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert set(order) == set(MODULES)


def test_torch_stays_where_networks_are_trained_or_interpreted():
    users = {name for name, names in IMPORTS.items() if any(n.partition(".")[0] == "torch" for n in names)}
    assert users == {f"hapi_tvm.{name}" for name in WITH_TORCH}


def test_runtime_takes_from_tvm_what_a_board_has():
    taken = {name for name in IMPORTS["hapi_tvm.runtime"] if name.partition(".")[0] == "tvm"}
    assert taken <= RUNTIME_FROM_TVM


def run_python(*arguments: str, cwd: pathlib.Path, path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees no checkout but ``path``."""
    program = f"import sys; sys.path.insert(0, {str(path)!r}); " + arguments[-1]
    command = [sys.executable, "-P", *arguments[:-1], "-c", program]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "missing"), [("certify", "tvm torch"), ("search", "tvm torch"), ("runtime", "torch")]
)
def test_module_loads_where_packages_are_missing(module, missing, tmp_path):
    block = "".join(f"sys.modules[{name!r}] = None; " for name in missing.split())
    done = run_python(f"{block}import hapi_tvm.{module}", cwd=tmp_path, path=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_second_worktree_and_its_workers_load_their_own_copy(tmp_path):
    copy = copy_checkout(tmp_path / "copy")
    program = """
import inspect
import hapi_tvm.passes.graph
from hapi_tvm.errors import HapiError
from hapi_tvm.targets.forkserver import ForkServer, shared_server
print(hapi_tvm.__file__)
print(hapi_tvm.passes.graph.__file__)
print(inspect.getfile(ForkServer))
for outcome in shared_server().map(inspect.getfile, [(HapiError,), (ForkServer,)], 60):
    print(outcome.value)
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    done = run_python(f"import runpy; runpy.run_path({str(script)!r})", cwd=tmp_path, path=copy)
    expected = [
        "hapi_tvm/__init__.py",
        "passes/graph.py",
        "targets/forkserver.py",
        "hapi_tvm/errors.py",
        "targets/forkserver.py",
    ]
    assert done.stdout.split() == [str(copy / name) for name in expected], done.stderr


@pytest.mark.parametrize("folder", ["passes", "targets"])
def test_a_folder_under_its_own_name_says_how_to_import_it(folder, tmp_path):
    done = run_python(f"import {folder}", cwd=tmp_path, path=ROOT)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message == f"ImportError: this folder was imported as {folder!r}: import hapi_tvm.{folder} instead"


def test_public_names_are_few_and_there():
    assert len(hapi_tvm.__all__) <= 10
    for name in hapi_tvm.__all__:
        assert getattr(hapi_tvm, name) is not None
    assert set(hapi_tvm.__all__) <= set(dir(hapi_tvm))


def test_an_unknown_name_lists_the_public_ones():
    with pytest.raises(AttributeError, match="import_model"):
        _ = hapi_tvm.imprt_model
