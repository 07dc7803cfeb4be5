"""Test which model a run keeps (`evaluation.select`), and that a choice on the test split is labelled everywhere."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_pig import PigForRetrieval
from modeling_pig.publishing.model_card import make_eval_results, make_model_card
from modeling_pig.publishing.run_records import read_run
from modeling_pig.training.loop import recall_sum, train
from modeling_pig.training.recipe import Recipe

from .benchmark_stand_ins import MSRVTT_9K, write_msrvtt_1k
from .cli_helpers import assert_one_line_error
from .test_recipes import TINY_CLIP


LABEL = "selected on the test split of msrvtt_1k, as published code does"


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("msrvtt")
    write_msrvtt_1k(folder)
    return folder


@pytest.fixture(scope="module")
def settings(msrvtt) -> list[str]:
    """Return overrides with which the recipe of 1k-A trains on all its training videos in seconds."""
    return [
        f"data.annotations={msrvtt / 'annotations'}",
        f"data.videos={msrvtt / 'videos'}",
        "data.options.validation=0",
        "data.num_workers=0",
        f"model.clip={TINY_CLIP}",
        "training.batch_size=2",
        "training.epochs=2",
        "optimizer.learning_rate=1e-3",
    ]


def recipe_of(settings: list[str], *more: str) -> Recipe:
    return Recipe.from_yaml(Path(__file__).parent.parent / "configuration/recipes/msrvtt_1k.yaml", [*settings, *more])


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_model_selected_on_test_says_so_everywhere(settings, tmp_path, pig):
    run = tmp_path / "run"
    best = train(recipe_of(settings, "evaluation.select=test", "evaluation.test=false"), run)
    evaluations = [record for record in records(run) if "test" in record]
    assert [record["epoch"] for record in evaluations] == [1, 2]
    assert recall_sum(best.text_to_video) == max(recall_sum(r["test"]["text_to_video"]) for r in evaluations)
    model = PigForRetrieval.from_pretrained(run / "model")
    assert model.config.selected_on == "msrvtt_1k/test"
    assert train(recipe_of(settings, "evaluation.select=test"), run, resume=True) == best  # finished already

    command = ["evaluate", "--model", run / "model", "--recipe", run / "recipe.yaml", "--bootstrap", 0]
    status, output, error = pig(*command, "--output", run / "test.json")
    assert status == 0 and LABEL in output, error
    assert json.loads((run / "test.json").read_text())["selected_on"] == "msrvtt_1k/test"
    assert_one_line_error(pig(*command, "--split", "validation"), "msrvtt_1k has no split validation")

    found = read_run(run)
    card = make_model_card(found, model, "org/name").text.replace("\\", "")
    assert LABEL in card and "the best on the test split, as published code selects" in card
    assert "model selected on msrvtt_1k/test" in " ".join(make_eval_results(found.test).split())


def test_the_last_model_is_kept_without_a_validation_split(settings, tmp_path):
    run = tmp_path / "run"
    assert train(recipe_of(settings, "evaluation.select=last"), run) is None
    checkpoint = load_file(max((run / "checkpoints").glob("step_*")) / "model.safetensors")
    assert all((value == checkpoint[name]).all() for name, value in load_file(run / "model/model.safetensors").items())
    assert records(run)[-1]["step"] == len(MSRVTT_9K) // 2 * 2
    test = json.loads((run / "test.json").read_text())
    assert test["selected_on"] is None and test["num_videos"] > 0
    card = make_model_card(read_run(run), PigForRetrieval.from_pretrained(run / "model"), "org/name").text
    assert "the model of the last epoch" in card and "as published code" not in card
    assert train(recipe_of(settings, "evaluation.select=last"), run, resume=True) is None


def test_recipes_without_the_split_that_selects_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="msrvtt_1k has no split validation, and evaluation.select is validation"):
        train(recipe_of(settings), tmp_path / "run")
    only_train = recipe_of(settings, "data.options.splits=[train]", "evaluation.select=last")
    with pytest.raises(ValueError, match="msrvtt_1k has no split test, and evaluation.test is true"):
        train(only_train, tmp_path / "run")
    with pytest.raises(ValueError, match="evaluation.select is last.*remove evaluation.patience"):
        recipe_of(settings, "evaluation.select=last", "evaluation.patience=2")
