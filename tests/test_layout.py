"""The import rules of the package, and that importing it costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_pig


PACKAGE = Path(modeling_pig.__file__).parent
EXPORTED = sorted(PACKAGE.glob("*_pig.py"))  # what travels to the Hub with a model
# What each package may import of the others, besides the exported files and `files`.
PACKAGES = {
    "encoding": set(),
    "stores": set(),
    "benchmarks": set(),
    "visualization": {"encoding", "stores"},
    "retrieval": {"encoding", "stores"},
    "evaluation": {"encoding", "visualization"},
    "training": {"encoding", "evaluation", "visualization"},
    "publishing": {"encoding", "stores", "retrieval", "benchmarks", "evaluation", "training", "visualization"},
    "app": {"encoding", "stores", "retrieval", "visualization"},
}


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, relative ones with their dots (`..encoding.loading`)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_exported_files_are_those_of_the_design():
    names = {file.name for file in EXPORTED}
    assert names >= {"configuration_pig.py", "modeling_pig.py", "loss_pig.py", "processing_pig.py"}
    assert names >= {"video_decoding_pig.py", "video_processing_pig.py"}


@pytest.mark.parametrize("file", EXPORTED, ids=lambda file: file.name)
def test_exported_files_import_their_siblings_and_the_core_only(file):
    standard = set(sys.stdlib_module_names)
    core = {
        "transformers",
        "torch",
        "torchvision",
        "numpy",
        "huggingface_hub",
        "PIL",
    }  # transformers itself needs them
    siblings = {f".{sibling.stem}" for sibling in EXPORTED}
    for name in imports(file):
        if name.startswith("."):
            assert name in siblings
        elif name in imports(file, top_level_only=True):
            assert name.split(".")[0] in standard | core
        else:  # inside a function
            assert name.split(".")[0] in standard | core | {"av"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_layout_allows(package):
    for file in (PACKAGE / package).glob("*.py"):  # publishing/space/app.py is a template: it runs in a Space
        for name in imports(file):
            if name.startswith("..") and not name.endswith("_pig"):
                imported = name.removeprefix("..").split(".")[0]
                assert imported in PACKAGES[package] | {"files"}, f"{file} imports {name}"
            assert name.split(".")[0] != "modeling_pig" or name in ("modeling_pig", "modeling_pig.modeling_pig"), file


def test_imports_between_packages_have_no_circle():
    placed: set[str] = set()
    while len(placed) < len(PACKAGES):
        free = {package for package, allowed in PACKAGES.items() if allowed <= placed} - placed
        assert free, f"a circle among {PACKAGES.keys() - placed}"
        placed |= free


def test_every_package_has_a_rule():
    folders = {init.parent.name for init in PACKAGE.glob("*/__init__.py")}
    assert folders - {"cli"} == {package for package in PACKAGES if (PACKAGE / package).is_dir()}


@pytest.mark.parametrize("module", ["modeling_pig", "modeling_pig.cli", "modeling_pig.benchmarks"])
def test_importing_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_export_is_there():
    for name in modeling_pig.__all__:
        assert getattr(modeling_pig, name) is not None
    assert set(modeling_pig.__all__) <= set(dir(modeling_pig))
    with pytest.raises(AttributeError, match="no attribute 'Pig'"):
        modeling_pig.Pig  # noqa: B018 - the access is the test


@pytest.mark.parametrize("folder", ["modeling_pig", "examples", "hub_scripts", "tests"])
def test_every_file_says_what_it_is(folder):
    for file in (PACKAGE.parent / folder).rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert not source.strip() or ast.get_docstring(ast.parse(source)), f"{file} has no docstring"
