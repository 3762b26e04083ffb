"""What the import rules of pyproject.toml do not say: circles, sizes, and who may name what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
OWNED = ("torch.cuda", "torch.distributed")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """All that is imported anywhere in a file: lazily and for types only, too. ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def chain(node: ast.AST) -> str:
    """``torch.cuda.is_available`` of such an expression."""
    if isinstance(node, ast.Attribute):
        return f"{chain(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def uses(tree: ast.AST) -> set[str]:
    named = [*imports(tree), *(chain(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))]
    return {owned for owned in OWNED for name in named if f"{name}.".startswith(f"{owned}.")}


def graph() -> dict[str, set[str]]:
    """Files of limbeck, and which others each imports."""
    modules = {module_of(path): path for path in FILES}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        named = imports(ast.parse(path.read_text(encoding="utf-8")))
        # `from a import b` imports the file a.b if there is one, else a.
        own = {each if each in modules else each.rpartition(".")[0] for each in named}
        found[name] = {each for each in own if each in modules and each != name}
    return found


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files each of which imports all others of the group, directly or not."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in edges[stack.pop()] - seen:
                seen.add(target)
                stack.append(target)
        return seen

    reach = {name: reached(name) for name in edges}
    groups = [{other for other in reach[name] if name in reach[other]} for name in edges if name in reach[name]]
    return [group for i, group in enumerate(groups) if group not in groups[:i]]


def test_no_files_import_each_other() -> None:
    edges = graph()
    assert "limbeck.models.causal_lm" in edges["limbeck.models.proof"], "the imports are not found"
    # limbeck/__init__.py offers names of the public API, which are imported on use.
    assert circles({name: found - {"limbeck"} for name, found in edges.items()}) == []


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(edges) == [{"b", "c"}]


def test_one_file_asks_torch_for_devices_and_processes() -> None:
    found = {module_of(path) for path in FILES if uses(ast.parse(path.read_text(encoding="utf-8")))}
    assert {name for name in found if not name.startswith("limbeck.objectives")} == {"limbeck.runtime.world"}


@pytest.mark.parametrize(
    "line",
    [
        "import torch.distributed as dist",
        "from torch import cuda",
        "from torch.distributed.fsdp import fully_shard",
        "import torch\nfree = torch.cuda.mem_get_info()",
        "def f():\n    from torch import distributed",
    ],
)
def test_every_way_to_ask_is_seen(line: str) -> None:
    assert uses(ast.parse(line))
    assert not uses(ast.parse("import torch\nx = torch.device('cuda'); y.cuda()"))


LINES = 1_300
"""Of Python in a folder, without those below it."""

LARGE_ROOMS = {"objectives", "report"}
PARAMETERS = 7
MANY_PARAMETERS = {"limbeck.objectives.fused", "limbeck.objectives.kernels.triton_kernels"}
"""The public objective and kernels."""
READERS_OF_A_RECIPE = (
    "limbeck.recipe",
    "limbeck.commands",
    "limbeck.cli",
    "limbeck.pipeline.build",
    "limbeck.pipeline.sections",
)


def test_no_folder_is_too_large() -> None:
    lines: dict[str, int] = {}
    for path in FILES:
        room = str(path.parent.relative_to(ROOT))
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    assert len(lines) > 20
    large = {room: n for room, n in lines.items() if n > LINES and room not in LARGE_ROOMS}
    assert large == {}, f"more than {LINES} lines of Python in a folder: divide it"


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len(named) - bool(named and named[0].arg in ("self", "cls"))


def test_no_function_has_too_many_parameters() -> None:
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and parameters(node) > PARAMETERS:
                found[f"{module_of(path)}.{node.name}"] = parameters(node)
    assert {name: n for name, n in found.items() if name.rpartition(".")[0] not in MANY_PARAMETERS} == {}


def test_a_whole_recipe_is_read_in_one_place() -> None:
    """Everything else gets the sections that it needs."""
    naming = {
        module_of(path)
        for path in FILES
        if any(name.rpartition(".")[2] == "Recipe" for name in imports(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert "limbeck.pipeline.build" in naming
    assert {
        name for name in naming if not f"{name}.".startswith(tuple(f"{each}." for each in READERS_OF_A_RECIPE))
    } == set()
