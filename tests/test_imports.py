"""Which part of the package imports which: read from the source, imports in functions included."""

import ast
import functools
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

TECHNIQUES = {"quantization", "pruning", "sharing", "factorization", "distillation"}

#: Package -> packages of `tfcompress` that it may import from. `callbacks` and the package itself
#: gather names; the tools are on top.
ALLOWED = {
    "files": set(),
    "tables": set(),
    "model": {"files", "tables"},
    **{technique: {"files", "tables", "model"} for technique in TECHNIQUES},
    "compat": {"files", "tables", "model", *TECHNIQUES},
    "export": {"files", "tables", "model", *TECHNIQUES},
    # Recipes name callbacks.
    "analysis": {"files", "tables", "model", "export", "callbacks", *TECHNIQUES},
}


def _name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Name of every module of the package -> its syntax tree."""
    files = sorted((ROOT / "tfcompress").rglob("*.py"))
    return {_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def imports_of(name: str, tree: ast.AST) -> set[str]:
    """The modules of the package that a module imports, wherever in it, also for types alone.

    `from tfcompress.a import b` is `tfcompress.a.b` where that is a module, else `tfcompress.a`.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return {module for module in found if module in modules()} - {name}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imports_of(name, tree) for name, tree in modules().items()}


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], set()

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = set()
            while name not in component:
                component.add(stack.pop())
            if len(component) > 1:
                found.add(frozenset(component))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": set()}
    assert circles(edges) == {frozenset({"b", "c"})}


def test_imports_in_functions_and_for_types_are_read():
    source = """
from tfcompress.model import graph
from tfcompress.model.graph import Graph
if TYPE_CHECKING:
    from tfcompress.export import report
def f():
    import tfcompress.version
"""
    assert imports_of("x", ast.parse(source)) == {
        "tfcompress.model.graph",
        "tfcompress.export.report",
        "tfcompress.version",
    }


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_is_below_them(package):
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        if name.split(".")[1:2] == [package]
        for other in sorted(others)
        if other.split(".")[1:2] not in [[package], ["version"], *([p] for p in ALLOWED[package])]
    ]
    assert not wrong


def test_every_package_has_its_place():
    packages = {name.split(".")[1] for name in modules() if name.count(".") > 1}
    assert packages <= {*ALLOWED, "tools"}


def test_only_tools_import_the_whole_package():
    users = {name for name, others in graph().items() if "tfcompress" in others}
    assert not [name for name in users if not name.startswith("tfcompress.tools.")]


def test_there_is_no_circle():
    assert circles(graph()) == set()


def _strings(tree: ast.AST) -> set[str]:
    """The strings of a module without its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    }


def test_no_technique_names_a_class_of_another_in_a_string():
    classes: dict[str, set[str]] = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, set()).add(name.split(".")[1])
    found = {}
    for name, tree in modules().items():
        package = name.split(".")[1] if "." in name else ""
        if package in TECHNIQUES | {"model"}:
            foreign = {s for s in _strings(tree) & set(classes) if package not in classes[s]}
            if foreign:
                found[name.removeprefix("tfcompress.")] = foreign
    assert not found


#: What is public beside `tfcompress` itself: the `__all__` of these.
PUBLIC_MODULES = {
    "tfcompress.callbacks",
    "tfcompress.distillation",
    "tfcompress.export",
    "tfcompress.factorization",
    "tfcompress.model",
    "tfcompress.pruning",
    "tfcompress.pruning.structure",
    "tfcompress.quantization",
    "tfcompress.sharing",
    "tfcompress.tools.datasets",
}
#: Internals that recipes and benchmarks take apart, or measure.
INTERNAL_USES = {
    # A peer's batch norm, fused as in the legacy Keras.
    ("recipes/models.py", "tfcompress.quantization.operators.batch_norm", "quantized_batch_norm"),
    (
        "benchmarks/training_step.py",
        "tfcompress.quantization.operators.batch_norm",
        "quantized_batch_norm",
    ),
    # How one step of an export grows with depth.
    ("benchmarks/growth.py", "tfcompress.export.lowering.lower", "lower"),
    # Readers that are no public names of the package, but of its tools and files.
    ("benchmarks/fuzz.py", "tfcompress.export.bundle.files", "check_golden"),
    ("benchmarks/fuzz.py", "tfcompress.export.bundle.files", "read_bundle"),
    ("benchmarks/fuzz.py", "tfcompress.analysis.search.state", "State"),
    ("benchmarks/fuzz.py", "tfcompress.tools.samples", "load_samples"),
}


def test_recipes_and_benchmarks_use_public_names_alone():
    found = set()
    for path in sorted(
        p for d in ("recipes", "benchmarks", "tools") for p in (ROOT / d).glob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names if alias.name != "tfcompress"]
            elif isinstance(node, ast.ImportFrom):
                pairs = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            found |= {
                (path.relative_to(ROOT).as_posix(), module, name)
                for module, name in pairs
                if module.split(".")[0] == "tfcompress" and not _is_public(module, name)
            }
    assert found == INTERNAL_USES


def _is_public(module: str, name: str) -> bool:
    if f"{module}.{name}" in PUBLIC_MODULES:
        return True
    if module not in {"tfcompress", *PUBLIC_MODULES}:
        return False
    return name in getattr(
        importlib.import_module(module), "__all__", vars(importlib.import_module(module))
    )
