"""Test all recipes, model sizes and launch profiles of the repository: fields, shapes, and training on stand-ins of
the benchmarks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from modeling_pig import PigConfig, PigForRetrieval, PigVideoProcessor
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe

from . import benchmark_stand_ins
from .test_training import DEMO, tiny_run, validations
from .warm_python import warm_python


ROOT = Path(__file__).parent.parent
TINY_CLIP = ROOT / "tests/golden/tiny_clip"
RECIPES = sorted((ROOT / "configuration/recipes").glob("*.yaml"))
OF_BENCHMARKS = [path for path in RECIPES if not path.stem.startswith(("moving_shapes", "videofolder"))]
PROFILES = sorted((ROOT / "configuration/accelerate").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.stem


def test_each_benchmark_of_the_paper_has_a_recipe():
    named = {Recipe.from_yaml(path).data.benchmark for path in RECIPES}
    assert named == {"moving_shapes", "msrvtt_1k", "msrvtt_3k", "msvd", "vatex", "didemo", "videofolder"}


@pytest.mark.parametrize("path", OF_BENCHMARKS, ids=name_of)
def test_recipes_of_benchmarks_equal_the_paper_and_give_its_shapes(path):
    """Build model and processor in full size, without memory or weights."""
    recipe = Recipe.from_yaml(path)
    assert recipe.optimizer.learning_rate == 3e-6 and recipe.optimizer.betas == (0.9, 0.98)
    assert recipe.training.batch_size == (88 if "patch16" in recipe.model.clip else 128)
    assert recipe.training.epochs == 100 and recipe.training.warmup_ratio == 0.01
    assert recipe.data.max_text_tokens == 50
    size = recipe.model.clip.removeprefix("openai/clip-")
    shape = json.loads((ROOT / f"configuration/models/{size}.json").read_text())
    shape["vision_config"] |= recipe.model.overrides
    config = PigConfig.from_fields(**shape)
    frames = np.zeros((12, 240, 320, 3), dtype=np.uint8)
    pixels = PigVideoProcessor.from_config(config.vision_config)(frames, do_sample_frames=False, return_tensors="pt")
    assert pixels["pixel_values_videos"].shape == (1, 12, 3, 224, 224)
    with torch.device("meta"):
        model = PigForRetrieval(config)
        ids = torch.ones((2, recipe.data.max_text_tokens), dtype=torch.long)
        videos = torch.ones((2, 12, 3, 224, 224))
        outputs = model(input_ids=ids, pixel_values_videos=videos)
    assert outputs.logits_per_text.shape == (2, 2) and outputs.video_embeds.shape == (2, 512)
    num_patches = 49 if "patch32" in size else 196
    assert outputs.vision_model_output.last_hidden_state.shape[-1] == 768
    assert model.config.vision_config.num_patches == num_patches


def test_model_size_equals_the_configuration_from_clip():
    """ViT-B/32 in OpenAI's configuration, with its wrong token ids."""
    from transformers import CLIPConfig

    clip = CLIPConfig(
        text_config={"vocab_size": 49408, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
        vision_config={"patch_size": 32},
        projection_dim=512,
    )
    expected = PigConfig.from_clip_config(clip, num_frames=12).to_dict()
    shape = json.loads((ROOT / "configuration/models/vit-base-patch32.json").read_text())
    seen = PigConfig.from_fields(**shape).to_dict()
    assert seen == expected


@pytest.mark.parametrize("path", [path for path in OF_BENCHMARKS if "patch16" not in path.stem], ids=name_of)
def test_recipe_trains_on_a_stand_in_of_its_benchmark(path, tmp_path):
    recipe = Recipe.from_yaml(path)
    getattr(benchmark_stand_ins, f"write_{recipe.data.benchmark}")(tmp_path)
    small = [
        f"data.annotations={tmp_path / 'annotations'}",
        f"data.videos={tmp_path / 'videos'}",
        "data.num_workers=0",
        f"model.clip={TINY_CLIP}",
        "training.batch_size=2",
        "training.epochs=2",
        "training.log_every_steps=1",
    ]
    if recipe.data.benchmark == "msrvtt_1k":
        small.append("data.options.validation=2")
    best = train(Recipe.from_yaml(path, small), tmp_path / "run")
    assert np.isfinite(best.text_to_video["MnR"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] >= 2
    test = json.loads((tmp_path / "run/test.json").read_text())
    assert test["benchmark"] == recipe.data.benchmark and test["protocol"]
    assert test["num_videos"] == test["num_videos_in_split"] > 0


# launch profiles


def test_profiles_have_valid_fields():
    assert [path.stem for path in PROFILES] == ["cpu", "cpu_processes", "fsdp2", "multi_gpu", "multi_node", "one_gpu"]
    for path in PROFILES:
        config = load_config_from_file(str(path))  # refuses unknown keys
        fields = yaml.safe_load(path.read_text())
        assert config.num_processes == fields["num_processes"]
        assert "mixed_precision" not in fields  # set by the recipe


def test_fsdp2_profile_configures_the_plugin(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin

    profile = yaml.safe_load((ROOT / "configuration/accelerate/fsdp2.yaml").read_text())
    for name, value in profile["fsdp_config"].items():  # as the launcher does
        monkeypatch.setenv(name.upper().replace("LAYER_CLS_TO_WRAP", "CLS_TO_WRAP"), str(value))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert str(plugin.state_dict_type).endswith("SHARDED_STATE_DICT")
    with torch.device("meta"):
        model = PigForRetrieval(PigConfig())
    plugin.set_auto_wrap_policy(model)  # raises if the model has no layer of a name
    names = {type(module).__name__ for module in model.modules()}
    assert set(plugin.transformer_cls_names_to_wrap) <= names


def test_profile_of_cpu_processes_trains(videos, tmp_path):
    profile = ROOT / "configuration/accelerate/cpu_processes.yaml"
    command = ["-m", "accelerate.commands.launch", "--config_file", profile, "--main_process_port", "0"]
    command += ["examples/train.py", "--recipe", DEMO, "--output", tmp_path / "run"]
    command += tiny_run(videos, "training.epochs=1", "evaluation.test=false")
    done = warm_python().run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["num_processes"] for record in validations(tmp_path / "run")] == [2]
    PigForRetrieval.from_pretrained(tmp_path / "run/model")


def test_sharded_model_trains_like_copies_and_resumes(videos, tmp_path):
    """Compare FSDP2 over two processes with DDP: equal weights, sharded checkpoints, one best model."""
    settings = ["evaluation.test=false", "training.checkpoint_every_steps=1", "training.save_total_limit=10"]
    overrides = tiny_run(videos, *settings)

    def launch(script: list[str], output: str) -> None:
        log = tmp_path / f"{output}.log"
        processes = warm_python().start_processes([*script, *overrides], log, 2)
        assert all([process.wait() == 0 for process in processes]), log.read_text()[-3000:]
        assert validations(tmp_path / output)[-1]["num_processes"] == 2

    copies = tmp_path / "copies"
    launch(["examples/train.py", "--recipe", str(DEMO), "--output", str(copies)], "copies")
    sharded = tmp_path / "sharded"
    launch(["tests/fsdp_worker.py", str(DEMO), str(sharded)], "sharded")
    parts = sorted((sharded / "checkpoints/step_00000003/pytorch_model_fsdp_0").glob("*.distcp"))
    assert len(parts) == 2  # one per process
    first = load_file(sharded / "model/model.safetensors")
    for name, expected in load_file(copies / "model/model.safetensors").items():
        assert torch.allclose(first[name], expected, atol=1e-5), name

    (sharded / ".finished").unlink()
    shutil.rmtree(sharded / "model")
    for checkpoint in sorted((sharded / "checkpoints").iterdir())[1:]:  # like a kill after step 1
        shutil.rmtree(checkpoint)
    launch(["tests/fsdp_worker.py", str(DEMO), str(sharded)], "sharded")
    again = load_file(sharded / "model/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in first.items())
