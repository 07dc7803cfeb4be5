"""The import rules of the package; importing the package loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_pig


PACKAGE = Path(modeling_pig.__file__).parent
EXPORTED = sorted(PACKAGE.glob("*_pig.py"))  # files that travel to the Hub with a model
# Package -> other packages that it may import, besides the exported files, `files` and `remote`.
PACKAGES = {
    "remote": set(),
    "encoding": set(),
    "stores": set(),
    "benchmarks": set(),
    "visualization": {"encoding", "stores"},
    "retrieval": {"encoding", "stores"},
    "evaluation": {"encoding", "benchmarks", "visualization"},
    "training": {"encoding", "benchmarks", "evaluation", "visualization"},
    "publishing": {"encoding", "stores", "retrieval", "benchmarks", "evaluation", "training", "visualization"},
    "app": {"encoding", "stores", "retrieval", "visualization"},
}


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Return the modules that a file imports; relative modules keep their dots (`..encoding.loading`)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_exported_files_import_their_siblings_and_the_core_only():
    # transformers itself needs these packages.
    core = {"transformers", "torch", "torchvision", "numpy", "huggingface_hub", "PIL", *sys.stdlib_module_names}
    siblings = {f".{sibling.stem}" for sibling in EXPORTED}
    for file in EXPORTED:
        for name in imports(file):
            if name.startswith("."):
                assert name in siblings, f"{file} imports {name}"
            else:
                inside_functions = set() if name in imports(file, top_level_only=True) else {"av", "torchcodec"}
                assert name.split(".")[0] in core | inside_functions, f"{file} imports {name}"


def test_packages_import_only_what_the_layout_allows():
    for package, allowed in PACKAGES.items():
        for file in (PACKAGE / package).glob("*.py"):  # publishing/space/app.py is a template: it runs in a Space
            for name in imports(file):
                if name.startswith("..") and not name.endswith("_pig"):
                    imported = name.removeprefix("..").split(".")[0]
                    known = allowed | {"bounded_folder", "extras", "files", "remote", "tables"}
                    assert imported in known, f"{file} imports {name}"
                is_absolute = name.split(".")[0] == "modeling_pig"
                assert not is_absolute or name in ("modeling_pig", "modeling_pig.modeling_pig"), file


def test_package_dependencies_have_no_cycle():
    ordered: set[str] = set()
    while len(ordered) < len(PACKAGES):
        free = {package for package, allowed in PACKAGES.items() if allowed <= ordered} - ordered
        assert free, f"a cycle among {PACKAGES.keys() - ordered}"
        ordered |= free


def test_every_package_has_a_rule():
    folders = {init.parent.name for init in PACKAGE.glob("*/__init__.py")}
    assert folders - {"cli"} == {package for package in PACKAGES if (PACKAGE / package).is_dir()}


def test_importing_the_package_loads_no_torch():
    code = "import sys, modeling_pig.cli, modeling_pig.benchmarks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_exported_name_exists():
    for name in modeling_pig.__all__:
        assert getattr(modeling_pig, name) is not None
    assert set(modeling_pig.__all__) <= set(dir(modeling_pig))
    with pytest.raises(AttributeError, match="no attribute 'Pig'"):
        modeling_pig.Pig  # noqa: B018 - the access is the test


def test_every_file_has_a_docstring():
    for folder in ("modeling_pig", "examples", "hub_scripts", "tests"):
        for file in (PACKAGE.parent / folder).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            assert not source.strip() or ast.get_docstring(ast.parse(source)), f"{file} has no docstring"
