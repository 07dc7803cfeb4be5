"""A model that starts from CLIP ranks about as well as CLIP before any training, and says that it is untrained."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPModel

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor
from modeling_pig.benchmarks.moving_shapes import Regime, make_captions, make_scene
from modeling_pig.benchmarks.shapes_drawing import draw_scene
from modeling_pig.publishing.model_card import make_model_card
from modeling_pig.publishing.run_records import read_run
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe
from modeling_pig.training.start import save_as_clip
from modeling_pig.training.tokenizer import train_tokenizer
from tests.test_training import ROOT, tiny_run


GOLDEN = ROOT / "tests/golden"
STILLS = Regime(still=True)
NUM_TEST = 150


def draw(split: str, count: int, processor: PigVideoProcessor) -> torch.Tensor:
    """Draw stills, (count, 1, 3, 64, 64), normalised."""
    frames = [draw_scene(make_scene(split, index, 0, STILLS))[:1] for index in range(count)]
    stills = [torch.from_numpy(frame).permute(0, 3, 1, 2) for frame in frames]
    return processor(stills, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[str, torch.Tensor, dict]:
    """A small CLIP that was trained on stills: its folder, and test stills with tokens of captions."""
    captions = [make_captions("train", index, 0, STILLS) for index in range(400)]
    tokenizer = train_tokenizer(captions, 600, 77)
    config = PigConfig.from_json_file(ROOT / "configuration/models/tiny.json").to_dict()
    config["framework"] = "two_tower"
    config["text_config"] |= {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }
    config["vision_config"] |= {
        "num_hidden_layers": 2,
        "num_frames": 1,
        "num_global_tokens": 0,
        "use_frame_tokens": False,
    }
    torch.manual_seed(0)
    model = PigForRetrieval(PigConfig(**config))
    video_processor = PigVideoProcessor.from_config(model.config.vision_config)
    stills = draw("train", len(captions), video_processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    steps, rng = 70, np.random.default_rng(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        rows = rng.choice(len(captions), 48, replace=False)
        texts = tokenizer([captions[row][rng.integers(4)] for row in rows], padding=True, return_tensors="pt")
        model(**texts, pixel_values_videos=stills[rows], return_loss=True).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        model.clamp_logit_scale_()
    folder = str(tmp_path_factory.mktemp("clip"))
    save_as_clip(model, PigProcessor(video_processor, tokenizer), folder)
    queries = [caption for index in range(NUM_TEST) for caption in make_captions("test", index, 0, STILLS)]
    return folder, draw("test", NUM_TEST, video_processor), dict(tokenizer(queries, padding=True, return_tensors="pt"))


def recall_at_10(scores: torch.Tensor) -> float:
    """Return R@10 in per cent from scores, (queries, videos), with four queries per video."""
    correct = scores[torch.arange(len(scores)), torch.arange(len(scores)) // 4]
    return 100 * float(((scores > correct[:, None]).sum(dim=1) < 10).float().mean())


@pytest.fixture(scope="module")
def recall_of_clip(clip) -> float:
    folder, stills, texts = clip
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        images = nn.functional.normalize(model.get_image_features(stills[:, 0]).pooler_output, dim=-1)
        queries = nn.functional.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    return recall_at_10(queries @ images.t())


def recall_of_start(clip, **pig_config) -> float:
    """Return R@10 of an untrained model on clips of 4 equal frames."""
    folder, stills, texts = clip
    torch.manual_seed(0)
    model = PigForRetrieval.from_clip(folder, num_frames=4, **pig_config).eval()
    assert model.config.untrained
    with torch.inference_mode():
        queries = model.get_text_features(**texts).pooler_output
        clips = stills.expand(-1, 4, -1, -1, -1).split(50)
        features = [model.get_video_features(batch) for batch in clips]
        name = "context_embeds" if model.config.framework == "single_tower" else "pooler_output"
        return recall_at_10(model.similarity(queries, torch.cat([batch[name] for batch in features])))


@pytest.mark.parametrize("framework", ["hybrid", "two_tower", "single_tower"])
def test_untrained_models_rank_like_clip(clip, recall_of_clip, framework):
    assert recall_of_clip > 30  # 7 by chance
    assert recall_of_start(clip, framework=framework) > recall_of_clip - 3


def test_start_of_the_paper_ranks_below_clip(clip, recall_of_clip):
    assert recall_of_start(clip, global_token_init="random") < recall_of_clip - 3


def test_untrained_models_say_so_until_they_are_trained(pig, video_folder, videos):
    """`pig init`, `pig index` and the model card say that a model is untrained; training removes the mark."""
    _, printed, _ = pig("init", "--clip", GOLDEN / "tiny_clip", "--output", "start", "--num-frames", "2")
    assert (
        "start has the weights that it started from and was not trained" in printed
        and "model.checkpoint=start" in printed
    )
    status, _, errors = pig("index", video_folder, "--model", "start", "--index", "start.lance")
    assert status == 0 and "warning: start has the weights that it started from and was not trained" in errors

    start = ["model.init=pig", "model.checkpoint=start", "model.overrides={}", "training.epochs=1"]
    train(Recipe.from_yaml(ROOT / "configuration/recipes/moving_shapes.yaml", [*tiny_run(videos), *start]), "run")
    _, _, errors = pig("index", video_folder, "--model", "run/model", "--index", "run.lance")
    assert "warning" not in errors
    model = PigForRetrieval.from_pretrained("run/model")
    assert not model.config.untrained
    assert "untrained" not in make_model_card(read_run("run"), model, "org/name").text
    model.config.untrained = True
    assert "**This model is untrained:**" in make_model_card(read_run("run"), model, "org/name").text
