import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "locoprop_lightning"
NAME = PACKAGE.name


def imports(path):
    """Modules that a file imports at run time, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from package import submodule` names a module too
            names |= {node.module} | {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if (PACKAGE.parent / node.module.replace(".", "/") / alias.name).is_dir()
                or (PACKAGE.parent / node.module.replace(".", "/") / f"{alias.name}.py").is_file()
            }
    return names


def files(part=None):
    return sorted((PACKAGE / part if part else PACKAGE).rglob("*.py"))


def parts_used(path):
    """Parts of the package that a file imports: a sub-package, or a module beside them."""
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{NAME}.")}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_local_imports_torch_only():
    for path in files("local"):
        for name in imports(path):
            top = name.split(".")[0]
            own = name.startswith(f"{NAME}.local") or name == f"{NAME}.errors"
            assert top == "torch" or top in sys.stdlib_module_names or own, f"{path} imports {name}"


def test_only_sweeps_import_ray_and_nothing_imports_sweeps():
    used = {path: {name.split(".")[0] for name in imports(path)} & {"ray", "optuna", "tune"} for path in files()}
    assert {"ray"} in used.values()
    for path in files():
        if part_of(path) != "tune":
            starts = part_of(path) == "__main__"  # the script of `locoprop-tune`, when it is called
            assert not used[path] and (starts or "tune" not in parts_used(path)), path


@pytest.mark.parametrize("module", ["", ".__main__", ".cli", ".results.compare", ".tune.__main__"])
def test_ray_is_imported_when_it_is_needed(module):
    script = f"import sys, {NAME}{module}; print({{'ray', 'tune'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "set()", done.stderr


# What each part may import of the others, besides errors: an arrow of the architecture.
ALLOWED = {
    "errors": set(),
    "reprs": set(),
    "seed": set(),
    "shipped": set(),
    "local": set(),
    "layers": {"local"},
    "oracles": {"local"},
    "solvers": {"local"},
    "distributed": {"local"},
    "tasks": set(),
    "networks": set(),
    "optimizers": set(),
    "checkpoints": set(),
    "settings": {"layers", "local", "oracles", "solvers"},
    "local_layer": {"layers", "local", "solvers"},
    "observer": {"local", "local_layer", "solvers"},
    "rest": {"local_layer", "solvers"},
    "layer_table": {"layers"},
}


@pytest.mark.parametrize("part", ALLOWED)
def test_parts_know_nothing_above_them(part):
    for path in files(part) or [PACKAGE / f"{part}.py"]:
        assert parts_used(path) <= ALLOWED[part] | {part, "errors", "reprs"}, path


def test_processes_are_the_business_of_one_package():
    for path in files():
        if part_of(path) != "distributed":
            used = {name for name in imports(path) if name.startswith(("torch.distributed", "greenlet"))}
            assert not used and "import distributed" not in path.read_text().replace(
                f"{NAME} import distributed", ""
            ), path
    for part in ("local", "oracles", "solvers"):
        for path in files(part):
            assert not re.search(r"process|\brank\b|distributed|greenlet", path.read_text(), re.I), path


def test_what_kind_a_layer_is_is_asked_of_the_registry():
    for path in files():
        if path.name not in ("linear.py", "convolution.py") or path.parent.name != "layers":
            assert not re.search(r"isinstance\(.*nn\.(Linear|Conv)", path.read_text()), path


def test_nobody_steers_another_by_its_attributes():
    """Callbacks, solvers, oracles and problems are told by arguments."""
    others = {"pl_module", "module", "solver", "oracle", "problem", "engine", "callback", "observer"}
    for path in files():
        if part_of(path) == "layers":  # which puts a module's training mode back
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) else ():
                for part in ast.walk(target):
                    if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                        owner = part.value.id if isinstance(part.value, ast.Name) else getattr(part.value, "attr", "")
                        assert owner not in others, f"{path}:{node.lineno} writes {owner}.{part.attr}"


def test_files_and_the_training_step_can_be_read():
    lengths = {path: len(path.read_text().splitlines()) for path in files()}
    assert max(lengths.values()) <= 320, max(lengths, key=lengths.get)
    assert lengths[PACKAGE / "module.py"] <= 255
    steps = [
        node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse((PACKAGE / "module.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "training_step"
    ]
    assert len(steps) == 1 and steps[0] <= 30


def test_only_the_command_imports_the_command():
    for path in files():
        if part_of(path) not in ("cli", "__main__", "tune"):
            assert "cli" not in parts_used(path), path


def test_only_events_import_tensorboard():
    for path in files("results"):
        outside = {name.split(".")[0] for name in imports(path)} & {"tensorboard", "google", "torch", "lightning"}
        assert outside <= ({"tensorboard", "google"} if path.name == "events.py" else set()), f"{path}: {outside}"


def test_reading_settings_imports_neither_tensorboard_nor_torch():
    script = "import sys, locoprop_lightning.results.settings; print({'tensorboard', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_no_circles():
    graph = {}
    for path in files():
        part = part_of(path)
        if part != "__init__":
            graph.setdefault(part, set()).update(parts_used(path) - {part})
    while graph:
        leaves = {part for part, used in graph.items() if not used & graph.keys()}
        assert leaves, f"circle among {sorted(graph)}"
        graph = {part: used for part, used in graph.items() if part not in leaves}


def test_packages_are_attributes_of_the_package():
    names = "{'tasks', 'LocoPropModule'} <= {*dir(l)}"
    script = f"import locoprop_lightning as l; l.solvers.ClosedForm; l.LocoPropModule; print({names})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
