"""Test options of a recipe (initial weights, freezing, adapters, chunks, trackers), and failures of a run: videos that
cannot be decoded, and losses that are not finite."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from modeling_pig import PigForRetrieval, PigProcessor
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import ModelRecipe, OptimizerRecipe, Recipe
from modeling_pig.training.start import add_lora, build_model, merged, parameter_groups, part_of

from .test_training import DEMO, tiny_run, validations


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def plain_run(videos, tmp_path_factory) -> Path:
    """Return the folder of a run of two epochs without any option."""
    run = tmp_path_factory.mktemp("plain") / "run"
    train(Recipe.from_yaml(DEMO, tiny_run(videos)), run)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def start_from(run: Path) -> list[str]:
    model = run / "model"
    return ["model.init=pig", f"model.checkpoint={model}", "model.overrides={}", "training.epochs=1"]


# starts


def test_run_starts_from_a_pig_model(plain_run):
    model, processor = build_model(ModelRecipe(init="pig", checkpoint=str(plain_run / "model")), [])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights(plain_run).items())
    assert processor.tokenizer.get_vocab() == PigProcessor.from_pretrained(plain_run / "model").tokenizer.get_vocab()
    with pytest.raises(ValueError, match="remove model.overrides"):
        build_model(ModelRecipe(init="pig", checkpoint=str(plain_run), overrides={"num_frames": 3}), [])


def test_run_starts_from_the_authors_checkpoint():
    recipe = ModelRecipe(
        init="reference", checkpoint=str(GOLDEN / "model_best.pt"), clip=str(GOLDEN / "tiny_clip"), overrides={}
    )
    model, processor = build_model(recipe, [])
    reference = torch.load(GOLDEN / "model_best.pt", weights_only=True)
    assert torch.equal(model.generator.bos_embedding, reference["generator.bos_tokens"])
    assert processor.video_processor.num_frames == model.config.vision_config.num_frames


def test_pig_start_without_a_checkpoint_is_refused():
    with pytest.raises(ValueError, match="model.init is pig: set model.checkpoint to the model to start from"):
        Recipe.from_yaml(DEMO, ["model.init=pig"])


# what is trained


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (["text"], {"text"}),
        (["video"], {"video", "video_new"}),
        (["generator", "interaction"], {"generator", "interaction"}),
        (["clip"], {"text", "video"}),  # what PIG adds to CLIP's towers is still trained
    ],
)
def test_frozen_parts_are_not_in_the_optimizer(plain_run, freeze, frozen):
    model, _ = build_model(ModelRecipe(init="pig", checkpoint=str(plain_run / "model"), freeze=freeze), [])
    seen = {part_of(name) for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert seen == frozen
    trained = {id(p) for group in parameter_groups(model, OptimizerRecipe()) for p in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_parts_have_separate_learning_rates(make_model):
    recipe = OptimizerRecipe(learning_rate=1e-5, part_learning_rates={"video": 1e-6, "generator": 1e-3})
    model = make_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {"video": 1e-6, "video_new": 1e-6, "generator": 1e-3}
    for group in parameter_groups(model, recipe):
        for parameter in group["params"]:
            assert group["lr"] == expected.get(part_of(names.pop(id(parameter))), 1e-5)
    assert not names


def test_adapters_train_and_are_merged_when_a_model_is_saved(videos, plain_run, tmp_path):
    settings = [*tiny_run(videos), *start_from(plain_run), "model.lora={rank: 2}"]
    train(Recipe.from_yaml(DEMO, settings), tmp_path / "run")
    before, after = weights(plain_run), weights(tmp_path / "run")
    assert before.keys() == after.keys()  # a plain model, without a trace of adapters
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    towers = {name for name in moved if part_of(name) in ("text", "video")}
    assert towers and all(".self_attn." in name and name.endswith("_proj.weight") for name in towers)
    for name in towers:  # an update of rank 2 at most
        singular = torch.linalg.svdvals(after[name] - before[name])
        assert singular[2] < 1e-4 * singular[0]


def test_frozen_towers_get_no_adapters(plain_run):
    lora = Recipe.from_yaml(DEMO, ["model.lora={rank: 2}"]).model.lora
    model, _ = build_model(ModelRecipe(init="pig", checkpoint=str(plain_run / "model"), freeze=["text"]), [])
    add_lora(model, lora)
    adapted = {part_of(name) for name, parameter in model.named_parameters() if "lora_" in name}
    assert adapted == {"video"}
    model, _ = build_model(ModelRecipe(init="pig", checkpoint=str(plain_run / "model"), freeze=["clip"]), [])
    with pytest.raises(ValueError, match="no trained tower has such modules"):
        add_lora(model, lora)


def test_merged_copy_equals_the_adapted_model(make_model, batch):
    model = make_model()
    adapted = add_lora(model, Recipe.from_yaml(DEMO, ["model.lora={rank: 2}"]).model.lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    copy = merged(adapted)
    assert type(copy) is PigForRetrieval
    with torch.no_grad():
        assert torch.allclose(copy.eval()(**batch).logits_per_text, model.eval()(**batch).logits_per_text, atol=1e-4)


# batches


def test_gradient_cache_gives_the_losses_of_the_whole_batch(videos, tmp_path):
    """Disable dropout, because its random numbers are drawn per chunk."""
    settings = tiny_run(videos, "training.epochs=2", "training.log_every_steps=1", "evaluation.test=false")
    index = next(i for i, setting in enumerate(settings) if setting.startswith("model.overrides"))
    settings[index] = settings[index].replace("{projection_dim", "{interaction_dropout: 0.0, projection_dim")
    losses = {}
    for name, more in {
        "whole": [],
        "cache": ["training.chunk_size=3"],  # 3 + 3 + 2 of 8
        "two captions": ["training.captions_per_video=2"],
        "two captions, cache": ["training.captions_per_video=2", "training.chunk_size=3"],
        "fewer": ["training.chunk_size=4", "training.chunking=fewer_negatives"],
    }.items():
        train(Recipe.from_yaml(DEMO, [*settings, *more]), tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["retrieval"] for line in lines if "seconds" in line]
    assert losses["cache"] == pytest.approx(losses["whole"], abs=2e-3)
    assert losses["two captions, cache"] == pytest.approx(losses["two captions"], abs=2e-3) != losses["whole"]
    assert losses["fewer"][0] < losses["whole"][0] - 0.5  # 2 log 4 instead of 2 log 8: an easier task


def test_unequal_numbers_of_chunks_are_refused(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_pig.training.loop.Accelerator.num_processes", 3)  # 8 videos: 2, 3 and 3
    settings = ["training.chunk_size=2", "training.chunking=fewer_negatives"]
    with pytest.raises(ValueError, match="3 processes 2 or 3 videos, which make unequal numbers of chunks of 2"):
        train(Recipe.from_yaml(DEMO, tiny_run(videos, *settings)), tmp_path / "run")


def test_activation_checkpointing_gives_the_same_losses(videos, plain_run, tmp_path):
    train(Recipe.from_yaml(DEMO, tiny_run(videos, "training.activation_checkpointing=true")), tmp_path / "run")
    for record, plain in zip(validations(tmp_path / "run"), validations(plain_run), strict=True):
        assert record["loss"] == pytest.approx(plain["loss"], abs=1e-3)


# figures


def test_run_folder_records_environment_curves_and_test(plain_run):
    [start] = json.loads((plain_run / "environment.json").read_text())
    assert start["packages"]["torch"] == torch.__version__.split("+")[0]
    assert start["seed"] == 0 and start["command"] and start["num_processes"] == 1
    assert start["mixed_precision"] == "no"
    assert (plain_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    test = json.loads((plain_run / "test.json").read_text())
    assert test["split"] == "test" and test["num_videos"] == 6 and test["intervals_95"]["text_to_video"]["R@1"]
    assert test["recipe"]["training"]["epochs"] == 2


def test_trackers_write_files(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "run/trackio"))  # as the run sets it, but only for this test
    settings = ["training.trackers=[tensorboard, trackio]", "training.epochs=1", "evaluation.test=false"]
    train(Recipe.from_yaml(DEMO, tiny_run(videos, *settings)), tmp_path / "run")
    for pattern in ("**/events.out.tfevents.*", "trackio/**/*.db"):
        assert list((tmp_path / "run").glob(pattern))


@pytest.fixture
def new_accelerator():
    """Let a test choose a precision: Accelerate keeps that of the first run in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_profile_of_a_few_steps_and_the_precision_in_effect_are_recorded(videos, tmp_path, capsys, new_accelerator):
    settings = [
        "training.mixed_precision=fp16",
        "training.profile_steps=1",
        "evaluation.test=false",
        "evaluation.every_epochs=2",
    ]
    train(Recipe.from_yaml(DEMO, tiny_run(videos, *settings)), tmp_path / "run")
    assert "mixed_precision is fp16, which cpu does not support: training in float32" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/environment.json").read_text())[0]["mixed_precision"] == "no"
    events = json.loads((tmp_path / "run/profile.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") in ("cpu_op", "user_annotation")]
    assert any("backward" in name.lower() for name in names)
    assert {name for name in names if name.startswith("ProfilerStep")} == {"ProfilerStep#2"}


def test_early_stopping_ends_a_run_without_progress(videos, tmp_path):
    settings = ["evaluation.patience=1", "training.epochs=9", "evaluation.test=false", "optimizer.learning_rate=1e-12"]
    train(Recipe.from_yaml(DEMO, tiny_run(videos, *settings)), tmp_path / "run")
    assert [record["epoch"] for record in validations(tmp_path / "run")] == [1, 2]  # nothing is learnt


# what goes wrong


def test_undecodable_video_is_replaced_and_listed(videos, plain_run, tmp_path):
    broken = tmp_path / "videos"
    shutil.copytree(videos, broken, ignore=shutil.ignore_patterns(".datasets"))
    (broken / "train/train_0003.mp4").write_bytes(b"no video")
    settings = tiny_run(broken, "data.max_unreadable_share=0.1", "data.options.train=17", "evaluation.test=false")
    train(Recipe.from_yaml(DEMO, settings), tmp_path / "run")
    with (tmp_path / "run/unreadable.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["video_id"] == "train_0003" and "not a video file" in row["reason"]
    assert len(validations(tmp_path / "run")) == 2
    with pytest.raises(
        ValueError, match=r"1 of 17 videos \(5.9%\) cannot be decoded, and at most 1.0% may: train_0003"
    ):
        train(Recipe.from_yaml(DEMO, [*settings, "data.max_unreadable_share=0.01"]), tmp_path / "strict")


def test_nonfinite_steps_are_skipped_and_too_many_end_the_run(videos, tmp_path, monkeypatch):
    forward, calls = PigForRetrieval.forward, []

    def spoilt_forward(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if kwargs.get("return_loss"):
            calls.append(1)
            if len(calls) >= 2:
                outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(PigForRetrieval, "forward", spoilt_forward)
    settings = ["training.max_nonfinite_steps=2", "training.checkpoint_every_steps=1", "training.log_every_steps=1"]
    with pytest.raises(ValueError, match="step 3 is skipped: loss nan.*the 1 before it.*optimizer.learning_rate"):
        train(Recipe.from_yaml(DEMO, tiny_run(videos, *settings)), tmp_path / "run")
    reports = sorted((tmp_path / "run/nonfinite").iterdir())
    assert [report.name for report in reports] == ["step_00000002.json", "step_00000003.json"]
    ids = json.loads(reports[0].read_text())["video_ids"]
    assert len(set(ids)) == 8 and all(name.startswith("train_") for name in ids)
    checkpoints = sorted((tmp_path / "run/checkpoints").iterdir())[-2:]
    one, two = (load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints)
    assert all(torch.equal(one[name], two[name]) for name in one)  # the skipped step changed no weight
