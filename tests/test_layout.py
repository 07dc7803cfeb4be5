"""The import rules of the package, and that importing it costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_pig


PACKAGE = Path(modeling_pig.__file__).parent
EXPORTED = sorted(PACKAGE.glob("*_pig.py"))  # what travels to the Hub with a model
# Each may import those after it; benchmarks stands beside.
STAGES = ["training", "evaluation", "visualization", "retrieval"]


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, relative ones with their dots (`..retrieval.encode`)."""
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


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_downwards_only(stage):
    allowed = set(STAGES[STAGES.index(stage) :])
    for file in (PACKAGE / stage).glob("*.py"):
        for name in imports(file):
            if name.startswith("..") and not name.endswith("_pig"):
                assert name.removeprefix("..").split(".")[0] in allowed, f"{file.name} imports {name}"


def test_benchmarks_stand_beside():
    for file in (PACKAGE / "benchmarks").glob("*.py"):
        for name in imports(file):
            assert not name.startswith("..") or name.endswith("_pig"), f"{file.name} imports {name}"


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
