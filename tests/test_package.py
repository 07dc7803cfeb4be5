"""The wheel and the source distribution: what they hold, and that the installed wheel runs outside the checkout."""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from urllib.request import urlopen

import pytest

from modeling_pig import __version__, extras


ROOT = Path(__file__).parent.parent
SOURCES = [
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "configuration",
    "modeling_pig",
    "pyproject.toml",
    "setup.py",
    "tests",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return a folder with the source distribution, the wheel built from it, and in `direct` that of the checkout."""
    checkout, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "videos", "golden")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, checkout / name)
    for options in (["--outdir", folder], ["--wheel", "--outdir", folder / "direct"]):
        check([sys.executable, "-m", "build", "--no-isolation", *options, checkout], cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """Return the programs of an environment that has only the wheel, and finds the dependencies of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    check([sys.executable, "-m", "venv", "--without-pip", folder], cwd=built)
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    # A line of a .pth file adds a folder, but does not read its .pth files, of which one leads to the checkout.
    dependencies = Path(paths["purelib"]) / "dependencies.pth"
    dependencies.write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    programs = Path(paths["scripts"])
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index", wheel]
    check([*pip, "--quiet", "--force-reinstall"], cwd=built)
    return programs


def check(command: list, cwd: Path) -> str:
    """Run a command that must succeed, without the checkout on the path; return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_source_distribution_builds_the_wheel_of_the_checkout(built):
    (from_source,), (direct,) = built.glob("*.whl"), built.glob("direct/*.whl")
    assert from_source.name == direct.name == f"modeling_pig-{__version__}-py3-none-any.whl"
    assert contents(from_source) == contents(direct)
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name]


def test_wheel_holds_every_file_of_the_package(built):
    package = ROOT / "modeling_pig"
    folders = [package, *(package / "configuration").iterdir()]  # `configuration` is a link
    files = {path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()}
    expected = {f"modeling_pig/{path.relative_to(package)}" for path in files if "__pycache__" not in path.parts}
    (wheel,) = built.glob("*.whl")
    held = {name for name in contents(wheel) if not name.startswith("modeling_pig-")}
    assert held == expected


def test_metadata_is_valid(built):
    check([sys.executable, "-m", "twine", "check", "--strict", *built.glob("*.*")], cwd=built)


def test_installed_wheel_indexes_and_serves_videos(installed, model_folder, shape_videos, tmp_path):
    module = check([installed / "python", "-c", "import modeling_pig; print(modeling_pig.__file__)"], tmp_path)
    assert Path(module.strip()).is_relative_to(installed.parent)
    assert check([installed / "pig", "--version"], tmp_path) == f"modeling-pig {__version__}\n"

    videos = shape_videos[0].parent
    indexing = [installed / "pig", "index", videos, "--model", model_folder, "--index", "v.lance"]
    assert "indexed 5 new" in check(indexing, tmp_path)

    command = [installed / "pig", "app", "--index", "v.lance", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[0]
            for page in ("", "style.css", "script.js", "api/v1/search?text=a+red+circle"):
                assert urlopen(f"{address}/{page}", timeout=60).read()
        finally:
            server.kill()


def test_installed_wheel_knows_its_recipes(installed, tmp_path):
    code = "from modeling_pig.cli.common import find_recipe; print(find_recipe('msrvtt_1k').read_text())"
    recipe = check([installed / "python", "-c", code], tmp_path)
    assert recipe == (ROOT / "configuration/recipes/msrvtt_1k.yaml").read_text(encoding="utf-8") + "\n"


def test_install_line_of_an_extra_names_what_setup_py_requires(monkeypatch):
    line = extras.pip_install("search")
    assert re.fullmatch(r'pip install ("[\w-]+>=[\d.]+" ?)+', line) and '"lancedb>=' in line and '"torch>=' not in line

    def missing(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", missing)
    assert extras.pip_install("search") == 'pip install -e ".[search]"'
