"""Test recipes that name a model class, a loss and a data set by their paths, with `examples/own_parts.py`."""

import json
import math
import os
from pathlib import Path

import pytest

from modeling_pig import load_benchmark
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe

from .cli_helpers import assert_one_line_error
from .test_training import DEMO, ROOT, tiny_run


@pytest.fixture(autouse=True)
def find_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_a_run_uses_its_own_class_loss_and_data(videos, tmp_path, pig):
    benchmark = load_benchmark("moving_shapes", videos=videos, train=16, validation=6, test=6, seed=0)
    for split in ("train", "validation", "test"):
        rows = [dict(row) | {"video": os.path.relpath(row["video"], videos)} for row in benchmark[split]]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    own = [
        "model.class=own_parts:MeanOfFrames",
        "training.loss=own_parts:text_to_video_loss",
        "data.benchmark=own_parts:load",
        "data.options={}",
        f"data.annotations={tmp_path}",
        "training.log_every_steps=1",
        "training.epochs=1",
    ]
    recipe = Recipe.from_yaml(DEMO, tiny_run(videos, *own))
    recipe.model.overrides["framework"] = "two_tower"
    run = tmp_path / "run"
    train(recipe, run)
    assert Recipe.from_yaml(run / "recipe.yaml") == recipe
    assert json.loads((run / "model/config.json").read_text())["architectures"] == ["MeanOfFrames"]
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == first["retrieval"] < 1.5 * math.log(8)  # chance; that of both directions is twice as much

    command = ["evaluate", "--model", run / "model", "--recipe", run / "recipe.yaml", "--bootstrap", 0]
    status, _, error = pig(*command, "--output", "own.json")
    assert status == 0, error
    assert pig(*command, "--output", "plain.json", "model.class=null")[0] == 0
    results = [json.loads(Path(file).read_text()) for file in (run / "test.json", "own.json", "plain.json")]
    test, own_class, plain = (result["text_to_video"] for result in results)
    assert test == own_class != plain
    assert results[0]["benchmark"] == "own_parts:load"


def test_the_page_shows_the_example():
    page = (ROOT / "docs/train.md").read_text(encoding="utf-8")
    assert page.split("```py\n")[1].split("```")[0] in (ROOT / "examples/own_parts.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.class=no_package:Model", "model.class is no_package:Model, which cannot be imported (No module named"),
        ("model.class=own_parts:Nothing", "module 'own_parts' has no attribute 'Nothing'"),
        ("model.class=own_parts", "which cannot be imported"),
        ("model.class=own_parts:load", "model.class is own_parts:load, a function: expected a PigForRetrieval"),
        ("model.Class=a:b", "unknown key model.Class: did you mean model.class?"),
    ],
)
def test_paths_that_name_no_model_class_are_refused(pig, model_folder, override, message):
    assert_one_line_error(pig("evaluate", "--model", model_folder, "--recipe", "moving_shapes", override), message)


def test_data_without_the_columns_of_a_benchmark_are_refused(tmp_path, monkeypatch, pig, model_folder):
    monkeypatch.chdir(tmp_path)  # modules in the working directory are found
    (tmp_path / "no_captions.py").write_text(
        "import datasets\n"
        "def load(**options):\n"
        "    return datasets.DatasetDict(test=datasets.Dataset.from_list([{'video_id': 'a', 'video': 'a.mp4'}]))\n"
    )
    command = ["evaluate", "--model", model_folder, "--recipe", "moving_shapes", "data.benchmark=no_captions:load"]
    assert_one_line_error(pig(*command), "The split test of no_captions:load lacks captions: expected")
