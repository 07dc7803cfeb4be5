"""`pig train` and `pig evaluate`: errors before any work; `pig --version`."""

import pytest

from modeling_pig import __version__

from .cli_helpers import assert_one_line_error


def test_version(pig):
    assert pig("--version") == (0, f"modeling-pig {__version__}\n", "")


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("moving_shape", [], "no recipe moving_shape: give a YAML file, or one of didemo, moving_shapes,"),
        ("missing.yaml", [], "The recipe missing.yaml cannot be read"),
        ("moving_shapes", ["training.epoch=3"], "did you mean training.epochs?"),
    ],
)
def test_invalid_recipes(pig, tmp_path, recipe, overrides, message):
    (tmp_path / "moving_shapes").mkdir()  # a folder does not hide the recipe of the same name
    assert_one_line_error(pig("train", "--recipe", recipe, "--output", "run", *overrides), message)
    assert_one_line_error(pig("evaluate", "--recipe", recipe, "--model", "m", *overrides), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bootstrap", 99], "--bootstrap is 99: expected 0, or 100 or more"),
        (["--output", "test.csv"], "--output is test.csv: expected a file named .json"),
        (["--model", "./missing"], "no model folder ./missing"),
    ],
)
def test_invalid_options_of_evaluate(pig, model_folder, options, message):
    command = ("evaluate", "--recipe", "moving_shapes", "--model", model_folder)
    assert_one_line_error(pig(*command, *options), message)
