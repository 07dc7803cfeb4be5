"""Test recipes, parameter groups, the tokenizer, and short training runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from modeling_pig import PigForRetrieval, PigProcessor
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe
from modeling_pig.training.start import build_model, parameter_groups
from modeling_pig.training.tokenizer import train_tokenizer

from .warm_python import warm_python


ROOT = Path(__file__).parent.parent
DEMO = ROOT / "configuration/recipes/moving_shapes.yaml"


def tiny_run(videos: Path, *more: str) -> list[str]:
    """Return overrides with which the demo's recipe trains a tiny model in seconds."""
    sizes = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}"
    return [
        f"data.videos={videos}",
        "data.options={train: 16, validation: 6, test: 6, seed: 0}",
        "data.num_workers=0",
        "model.overrides={projection_dim: 32, generator_num_hidden_layers: 1, text_config: "
        + sizes.replace("{", "{vocab_size: 600, max_position_embeddings: 77, ")
        + ", vision_config: "
        + sizes.replace("{", "{image_size: 32, patch_size: 16, num_frames: 2, ")
        + "}",
        "training.batch_size=8",
        "training.epochs=2",
        "evaluation.every_epochs=1",
        *more,
    ]


def validations(run: Path) -> list[dict]:
    """Return the validation records of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "validation" in record]


# recipes


def test_saved_recipe_equals_the_recipe(tmp_path):
    recipe = Recipe.from_yaml(DEMO, ["optimizer.learning_rate=3e-6", "training.epochs=7"])
    assert recipe.optimizer.learning_rate == 3e-6  # which YAML 1.1 takes for a string
    assert recipe.training.epochs == 7
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown key training.epoch: did you mean training.epochs?"),
        ("optimiser.eps=1", "unknown key optimiser: did you mean optimizer?"),
        ("training.batch_size=1", "training.batch_size: .*2.*got 1"),
        ("training.mixed_precision=fp8", "training.mixed_precision: .*'bf16'.*'fp8'"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: .*less than inf"),
        ("training.epochs=[", "is not YAML: put it in quotes"),
        ("model.config=null", "set model.config to the shape of the model"),
        ("model.config=missing.json", "missing.json, cannot be read: No such file"),
        ("training.epochs", "Got the override 'training.epochs'; expected section.key=value, for example"),
        ("data.videos.x=3", "'videos', which is not a section"),
    ],
)
def test_invalid_recipes_are_refused_in_one_line(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.from_yaml(DEMO, [override])
    assert "\n" not in str(caught.value)


def test_invalid_recipe_files_are_refused(tmp_path):
    for text, message in {
        "a: [": "is not YAML",
        "": "no sections",
        "- a": "no sections",
        "data: {benchmark: moving_shapes}": "data.videos: Field required",
    }.items():
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            Recipe.from_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Recipe.from_yaml(tmp_path / "missing.yaml")


# parts


def test_weight_decay_spares_biases_norms_and_logit_scale(make_model):
    model = make_model()
    decayed, plain = parameter_groups(model, Recipe.from_yaml(DEMO).optimizer)
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] > 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain_names = {names.pop(id(parameter)) for parameter in plain["params"]}
    assert {names.pop(id(parameter)) for parameter in decayed["params"]} and not names
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.endswith(".bias") or "norm" in name or "layrnorm" in name or name == "logit_scale"
    }
    assert plain_names == expected


def test_tokenizer_has_a_token_per_frequent_word_and_is_reproducible():
    captions = [["a red circle moves left", "a Red ring, it's red"], ["a blue circle spins", "12 circles"]]
    tokenizer, again = (train_tokenizer(captions, vocab_size=800) for _ in range(2))
    assert tokenizer.get_vocab() == again.get_vocab()
    for word in ("a", "red", "circle", "moves", "left", "ring", "spins", "circles", ",", "it", "'s"):
        assert tokenizer.tokenize(word) == [word + "</w>"], word
    small = train_tokenizer(captions, vocab_size=514 + 3)
    assert small.tokenize("a red circle") == ["a</w>", "red</w>", *"circl", "e</w>"]  # the most frequent ones first
    with pytest.raises(ValueError, match="vocab_size is 500"):
        train_tokenizer(captions, vocab_size=500)


def test_tokenizer_of_a_new_model_encodes_words_that_no_caption_has():
    recipe = Recipe.from_yaml(DEMO)
    model, processor = build_model(recipe.model, [["a red circle"]])
    tokenizer, config = processor.tokenizer, model.config.text_config
    assert config.vocab_size == len(tokenizer) and config.eos_token_id == tokenizer.eos_token_id
    for text in ("zebra", "ü", "naïve café", "日本語の動画", "🐖 runs!", "x" * 5, "\x00\x7f", "Ж9_~"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids[:-1], text
        assert ids[-1] == config.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


# runs


def test_run_writes_its_recipe_metrics_and_a_model_that_loads(videos, tmp_path):
    recipe = Recipe.from_yaml(DEMO, tiny_run(videos))
    best = train(recipe, tmp_path / "run")
    assert Recipe.from_yaml(tmp_path / "run/recipe.yaml") == recipe
    records = validations(tmp_path / "run")
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["step"] for record in records] == [2, 4]
    assert best.to_dict() in [record["validation"] for record in records]
    PigForRetrieval.from_pretrained(tmp_path / "run/model")
    assert PigProcessor.from_pretrained(tmp_path / "run/model").video_processor.num_frames == 2
    with pytest.raises(ValueError, match="already holds a trained model"):
        train(recipe, tmp_path / "run")


def test_short_run_learns(videos, tmp_path):
    """Train on 16 videos for 30 epochs."""
    settings = ["data.options={train: 16, validation: 16, test: 6, seed: 0}", "training.epochs=30"]
    settings += ["evaluation.every_epochs=30", "optimizer.learning_rate=3e-3", f"data.videos={tmp_path / 'videos'}"]
    train(Recipe.from_yaml(DEMO, tiny_run(videos, *settings)), tmp_path / "run")
    [record] = validations(tmp_path / "run")
    assert record["retrieval"] < 0.7 * 2 * np.log(8)  # chance is 2 log 8


def test_script_reports_errors_in_one_line_and_writes_no_model(videos, tmp_path):
    command = ["examples/train.py", "--recipe", DEMO, "--output", tmp_path / "run"]
    done = warm_python().run([*command, *tiny_run(videos, "training.batch_size=64")])
    assert done.returncode == 1
    assert "16 training videos do not fill one batch of 64" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run/model").exists()


def test_uncaught_error_ends_the_process_despite_workers(videos, tmp_path):
    """The traceback keeps references to data loader workers, which ignore the signal that ends them at exit."""
    code = f"""
from modeling_pig.training import loop
from modeling_pig.training.recipe import Recipe

def fail(*args):
    raise RuntimeError("the disk is full")

loop._Run._validate = fail
loop.train(Recipe.from_yaml({str(DEMO)!r}, {tiny_run(videos, "data.num_workers=1")!r}), {str(tmp_path / "run")!r})
"""
    ended = warm_python().run(["-c", code])
    assert ended.returncode == 1 and ended.stderr.rstrip().endswith("RuntimeError: the disk is full")
