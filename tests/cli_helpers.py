"""Fixtures and checks that the tests of all commands share."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_pig.cli import app


@pytest.fixture
def folder(shape_videos, tmp_path) -> Path:
    """A folder of five videos."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in shape_videos:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def pig(tmp_path, monkeypatch):
    """Run a `pig` command in a temporary folder; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def index(pig, folder, model_folder) -> str:
    """An index of the five videos."""
    status, _, error = pig("index", folder, "--model", model_folder, "--index", "v.lance")
    assert status == 0, error
    return "v.lance"


def assert_one_line_error(result: tuple[int, str, str], *parts: str) -> None:
    status, output, error = result
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 1 and not output and len(lines) == 1, result
    for part in parts:
        assert part in lines[0], lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
