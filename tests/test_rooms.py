"""The order of the rooms: a module imports only from rooms below its own, or from its own without a circle."""

import ast
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# From bottom to top; what stands in one line knows nothing of the others there.
FLOORS = [
    "ksm_hw.errors",
    "ksm_hw.user_folders",
    "ksm_hw ksm_hw.json_document tvm_passes.relay.names",
    "ksm_hw.resources ksm_hw.files ksm_hw.torch_files",
    "ksm_hw.state_dicts",
    "ksm_hw.images",
    "ksm_hw.masks",
    "ksm_hw.models",
    "ksm_hw.quantising",
    "ksm_hw.learning ksm_hw.artifact",
    "ksm_hw.importing ksm_hw.exporting",
    "ksm_hw.runtime",
    "ksm_hw.toolchains",
    "ksm_hw.measuring ksm_hw.runner",
    "ksm_hw.boards tvm_passes.relax.loops tvm_passes.unknown_dtype",
    "tvm_passes.relax.kernels",
    "tvm_passes.relax.schedules.base",
    "tvm_passes.relax.schedules.cpu tvm_passes.relax.schedules.gpu",
    "tvm_passes",
    "ksm_hw.compiler",
    "ksm_hw.report",
    "ksm_hw.cli",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
# What a board that only runs artifacts has, where torch is not installed.
WITHOUT_TORCH = [
    *(
        "ksm_hw.errors",
        "ksm_hw.user_folders",
        "ksm_hw.json_document",
        "ksm_hw.resources",
        "ksm_hw.files",
        "ksm_hw.torch_files",
        "ksm_hw.state_dicts",
        "ksm_hw.images",
        "ksm_hw.masks",
        "ksm_hw.artifact",
    ),
    *("ksm_hw.runtime", "ksm_hw.measuring", "ksm_hw.boards"),
]
# What makes of a task what a device runs: there all methods are one.
WITHOUT_METHODS = [
    *("ksm_hw.masks", "ksm_hw.models", "ksm_hw.quantising", "ksm_hw.artifact", "ksm_hw.runtime", "ksm_hw.toolchains"),
    *("ksm_hw.measuring", "ksm_hw.runner", "ksm_hw.boards", "ksm_hw.compiler"),
]
PUBLISHED = {"ksm", "piggyback", "packnet", "cpg"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


PATHS = {name_of(path): path for top in ("ksm_hw", "tvm_passes") for path in (REPOSITORY / top).rglob("*.py")}


def room_of(module: str) -> str:
    return module if module in FLOOR else room_of(module.rpartition(".")[0])


def named(node: ast.AST) -> list[str]:
    """The names that a node imports: of modules, or of what may be one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, "imports are absolute"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def imports_of(module: str) -> set[str]:
    """The modules of ours that one imports, wherever in it."""
    return {name for node in ast.walk(ast.parse(PATHS[module].read_text())) for name in named(node) if name in PATHS}


IMPORTS = {module: imports_of(module) - {module} for module in PATHS}


@pytest.mark.parametrize("module", PATHS)
def test_imports_lead_downwards(module: str) -> None:
    room = room_of(module)
    for other in IMPORTS[module]:
        assert room_of(other) == room or FLOOR[room_of(other)] < FLOOR[room], f"{module} imports {other}"
    if module.startswith("tvm_passes"):
        assert all(other.startswith("tvm_passes") for other in IMPORTS[module]), "passes know nothing of ksm_hw"


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter(IMPORTS).prepare()


@pytest.mark.parametrize("module", [module for module in PATHS if room_of(module) in WITHOUT_TORCH])
def test_what_runs_on_boards_imports_torch_only_where_it_is_used(module: str) -> None:
    statements = ast.parse(PATHS[module].read_text()).body
    imported = chain.from_iterable(map(named, statements))
    assert not {"torch", "torchvision"} & {name.partition(".")[0] for name in imported}


@pytest.mark.parametrize(
    "module", [name for name in PATHS if room_of(name) in WITHOUT_METHODS or name.startswith("tvm_passes")]
)
def test_what_deploys_tasks_does_not_look_at_their_method(module: str) -> None:
    """A pack says by what it was learned; that is written, read and shown, and decides nothing."""
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        text = node.value if isinstance(node, ast.Constant) else None
        assert not (isinstance(text, str) and text.lower() in PUBLISHED), f"line {node.lineno} names a method"
        if isinstance(node, ast.Attribute) and node.attr == "method":
            assert module == "ksm_hw.masks.task_pack", f"line {node.lineno} reads a method"
