"""Who may import whom: a room knows only those below it, and modules import each other in no circle."""

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "chameleon_jax"
GROUND = {
    "commands", "config_base", "config_help", "configs", "errors", "files", "progress", "summary", "vocab", "workdir",
}  # fmt: skip
BELOW = {
    "cli": GROUND | {"gin_utils", "parallel"},
    "gin_utils": GROUND,
    "parallel": GROUND,
    "tokenizers": GROUND,
    "models": GROUND | {"parallel"},
    "data": GROUND | {"tokenizers"},
    "checkpoints": GROUND | {"parallel"},
    "generation": GROUND | {"models", "parallel", "tokenizers", "checkpoints"},
    "convert": GROUND | {"models", "parallel", "tokenizers", "checkpoints"},
    "training": GROUND | {"models", "parallel", "tokenizers", "checkpoints", "data"},
    "serving": GROUND | {"models", "parallel", "tokenizers", "generation"},
    "evaluation": GROUND | {"models", "parallel", "tokenizers", "checkpoints", "data", "generation", "training"},
}
BELOW["tokenizer_training"] = BELOW["training"] | {"training", "evaluation"}
BELOW["own_data"] = BELOW["tokenizer_training"] | {"tokenizer_training"}
BELOW["compile_report"] = BELOW["training"] | {"training", "generation", "convert"}
BELOW["demo"] = BELOW["tokenizer_training"] | {"tokenizer_training", "generation"}


def imports(file):
    """Modules of this package that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chameleon_jax"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if path_of(inner) else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("chameleon_jax"))


def path_of(module):
    base = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


def room(module):
    return module.split(".")[1] if "." in module else ""


GRAPH = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): set(imports(file))
    for file in sorted(PACKAGE.rglob("*.py"))
}


def test_a_room_imports_only_rooms_below_it():
    wrong = [
        f"{module} imports {imported}"
        for module, found in GRAPH.items()
        for imported in sorted(found)
        if room(imported) != room(module) and room(imported) not in BELOW.get(room(module), GROUND)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError, with the circle


def test_every_room_is_known():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms - {"configs"} == set(BELOW) - {"cli", "gin_utils"}
