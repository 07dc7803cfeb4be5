"""Comparison of the frameworks: its phases on tiny data, and its modules against closed forms."""

import math
import sys
from pathlib import Path

import compare_frameworks
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from comparison import costs, intervals
from comparison.oracle import rank_by_other_captions
from comparison.runs import Settings, read_json
from comparison.variants import CONTROLS, FRAMEWORKS, MECHANISMS
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from modeling_pig import PigForRetrieval, PigProcessor
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.evaluation.metrics import retrieval_metrics
from modeling_pig.training.loop import recall_sum
from modeling_pig.training.recipe import Recipe
from modeling_pig.training.start import save_as_clip


ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "configuration/recipes"
PLAIN_CLIP = {"num_frames": 1, "num_global_tokens": 0, "use_frame_tokens": False}


# the phases


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    """Settings of a comparison that takes seconds."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 700, "max_position_embeddings": 77}
    vision = {**sizes, **PLAIN_CLIP, "image_size": 32, "patch_size": 16}
    tree = {
        "clip": str(RECIPES / "moving_shapes_clip.yaml"),
        "run": str(RECIPES / "moving_shapes_from_clip.yaml"),
        "overrides": [
            "data.options={train: 16, validation: 5, test: 6, seed: 0}",
            "data.num_workers=0",
            "training.batch_size=8",
            "training.epochs=1",
        ],
        "clip_overrides": [
            "model.overrides.projection_dim=32",
            f"model.overrides.text_config={text}",
            f"model.overrides.vision_config={vision}",
        ],
        "regimes": {
            "all": {"options": {}},
            "salient": {"options": {"shapes": [4], "scale": 0.6, "salient": 2, "named": 1}},
            "arbitrary": {"options": {"named": 1}},
        },
        "control": "arbitrary",
        "learning_rates": [1e-3, 2e-3],
        "choice_seed": 7,
        "exploration_seeds": [8],
        "longer_epochs": 3,
        "clip_seeds": [0, 1],
        "seeds": [0, 1],
        "rerank": [3],
        "galleries": [20, 40],
        "measured_bytes": 4 * 32 * 30,
    }
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.fixture
def run_phase(settings, monkeypatch):
    """Return a function that runs a phase of the comparison, with other options at the end."""

    def run(phase: str, *options: str) -> None:
        command = ["compare_frameworks.py", "--phase", phase, "--settings", str(settings), *options]
        monkeypatch.setattr(sys, "argv", command)
        compare_frameworks.main()

    return run


def test_the_phases(run_phase, settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("hybrid_of_the_paper", "detached_target"):  # two of four controls are enough
        monkeypatch.delitem(CONTROLS, name)
    output = tmp_path / "runs/comparison"
    for phase in ("explore", "compare"):
        with pytest.raises(SystemExit, match="error: There is no runs/comparison/choice.json: the regime is chosen"):
            run_phase(phase)
    assert not output.exists()

    run_phase("choose")
    choice = read_json(output / "choice.json")
    headroom = {name: regime["headroom"] for name, regime in choice["regimes"].items()}
    assert headroom.keys() == {"all", "salient", "arbitrary"} and "date" in choice["environment"]
    assert choice["chosen"] == max(("all", "salient"), key=headroom.get) and choice["control"] == "arbitrary"
    runs = sorted(path.name for path in output.glob("regimes/all/*-seed*"))
    assert runs == [f"{name}-rate{rate}-seed7" for name in ("single_tower", "two_tower") for rate in (0.001, 0.002)]
    for name, regime in choice["regimes"].items():
        for framework, rate in regime["learning_rates"].items():
            assert regime["sum of recalls"][framework][f"{rate:g}"] == max(
                regime["sum of recalls"][framework].values()
            )
            found = read_json(output / f"regimes/{name}/{framework}-rate{rate:g}-seed7/figures.json")
            assert found.keys() == {"validation"}  # the test split is not read
            assert recall_sum(found["validation"]["text_to_video"]) == pytest.approx(
                regime["sum of recalls"][framework][f"{rate:g}"]
            )
    words = CLIPTokenizer.from_pretrained(output / "regimes/all/clip1/clip").tokenize("a blue circle moves")
    assert words == ["a</w>", "blue</w>", "circle</w>", "moves</w>"]  # although no caption of a still contains "moves"

    run_phase("choose")
    assert "a choice is final" in capsys.readouterr().out
    assert read_json(output / "choice.json") == choice

    regime = output / "regimes" / choice["chosen"]
    with pytest.raises(SystemExit, match="There is no variant patches: choose from hybrid_that_reranks, "):
        run_phase("explore", "--variants", "patches")
    run_phase("explore", "--variants", "four_pseudo_queries")
    found = read_json(output / "exploration.json")["validation"]
    single_tower = ["single_tower", "single_tower, best 3 re-ranked", "single_tower, oracle"]
    hybrid = ["hybrid", "hybrid, best 3 re-ranked"]
    assert list(found) == ["two_tower", *single_tower, *hybrid, "four_pseudo_queries"]
    assert not [path for path in regime.glob("*-seed8/figures.json") if "test" in read_json(path)]

    run_phase("lengthen")
    longer = read_json(output / "longer.json")
    assert list(longer["validation"]) == [f"{name}, {steps} steps" for name in FRAMEWORKS for steps in (2, 6)]
    assert longer["curves"]["hybrid, 6 steps"].keys() == {"2", "4", "6"}
    rate = longer["learning_rates"]["hybrid"]
    found = read_json(regime / f"hybrid-rate{rate:g}-seed7-epochs3/figures.json")["validation"]
    assert longer["validation"]["hybrid, 6 steps"]["text_to_video"] == found["text_to_video"]

    run_phase("compare", "--variants", "hybrid_that_reranks")
    report = read_json(output / "comparison.json")
    assert list(report["regimes"]) == [choice["chosen"], "arbitrary"]
    of_chosen = report["regimes"][choice["chosen"]]
    reranked = {f"{name}, best 3 re-ranked" for name in ("single_tower", "hybrid", "hybrid_that_reranks")}
    assert {*FRAMEWORKS, *CONTROLS, "hybrid_that_reranks", *reranked} <= of_chosen["test"].keys()
    assert CONTROLS.keys().isdisjoint(report["regimes"]["arbitrary"]["test"])
    for split in ("validation", "test"):
        for name, summary in of_chosen[split].items():
            variant, _, kind = name.partition(", ")
            rate = of_chosen["learning_rates"][variant if variant in FRAMEWORKS else "hybrid"]
            rate = of_chosen["learning_rates"]["two_tower"] if variant == "two_tower_of_4_vectors" else rate
            figures = [read_json(regime / f"{variant}-rate{rate:g}-seed{seed}/figures.json")[split] for seed in (0, 1)]
            key = {"": "text_to_video", "oracle": "oracle"}.get(kind, "reranked_3")
            assert summary["figures"]["text_to_video R@5"]["values"] == [found[key]["R@5"] for found in figures]
            difference = summary["minus two_tower"]["text_to_video R@5"]["values"]
            baseline = of_chosen[split]["two_tower"]["figures"]["text_to_video R@5"]["values"]
            assert difference == [found[key]["R@5"] - of for found, of in zip(figures, baseline, strict=True)]
    clips = {Recipe.from_yaml(path).model.clip for path in regime.glob("hybrid-*-seed?/recipe.yaml")}
    assert {Path(clip).parent.name for clip in clips} == {"clip0", "clip1"}
    for picture in ("tradeoff.png", "curves.png"):
        with PIL.Image.open(output / picture) as image:
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 100

    # Finished runs are not repeated.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".safetensors", ".jsonl")}
    run_phase("compare", "--seeds", "0", "--variants")
    assert read_json(output / "comparison.json")["seeds"] == [0]
    assert {path: path.stat().st_mtime_ns for path in before} == before

    tree = yaml.safe_load(settings.read_text())
    tree["regimes"][choice["chosen"]] = {"options": {"named": 2}}
    changed = settings.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(tree))
    with pytest.raises(SystemExit, match="with other settings"):
        run_phase("compare", "--settings", str(changed))


@pytest.mark.parametrize("name", ["full", "quick"])
def test_settings_of_the_repository(name):
    settings = Settings.from_yaml(ROOT / f"configuration/comparison/{name}.yaml")
    assert not set(settings.seeds) & {settings.choice_seed, *settings.exploration_seeds}
    clip = Recipe.from_yaml(settings.clip, [*settings.overrides, *settings.clip_overrides])
    run = Recipe.from_yaml(settings.run, settings.overrides)
    assert clip.model.overrides["framework"] == "two_tower" and run.model.init == "clip"
    assert PLAIN_CLIP.items() <= clip.model.overrides["vision_config"].items()
    assert settings.control in settings.regimes


def test_invalid_settings(tmp_path):
    (tmp_path / "settings.yaml").write_text("{clip: a, run: b, regimen: {}}")
    with pytest.raises(ValueError, match="missing or unknown fields: .*regimen, regimes"):
        Settings.from_yaml(tmp_path / "settings.yaml")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Settings.from_yaml(tmp_path / "missing.yaml")


# initialisation


def test_a_model_of_stills_is_exported_as_an_equal_clip(make_model, tokenizer, processor, batch, tmp_path):
    model = make_model(framework="two_tower", vision_config=PLAIN_CLIP)
    nn.init.normal_(model.vision_model.embeddings.temporal_embedding)  # zero before training only
    processor(text=["a red circle"], text_kwargs={"max_length": 7}, return_tensors="pt")
    save_as_clip(model, processor, tmp_path)
    clip = CLIPModel.from_pretrained(tmp_path).eval()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    pixel_values_videos = batch["pixel_values_videos"][:, :1]
    with torch.inference_mode():
        ours = model(**text, pixel_values_videos=pixel_values_videos)
        theirs = clip(**text, pixel_values=pixel_values_videos[:, 0])
    torch.testing.assert_close(theirs.logits_per_text, ours.logits_per_text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.text_embeds, ours.text_embeds, atol=1e-6, rtol=1e-5)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    sentence = "a red circle moves left and then a blue square spins"
    assert loaded(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]

    hybrid = PigForRetrieval.from_clip(str(tmp_path), num_frames=4, num_selected_patches=5).eval()
    assert PigProcessor.from_clip(str(tmp_path), hybrid.config).video_processor.num_frames == 4
    with torch.inference_mode():
        torch.testing.assert_close(hybrid.get_text_features(**text), model.get_text_features(**text))
    torch.testing.assert_close(hybrid.logit_scale, model.logit_scale)


def test_a_model_that_clip_cannot_represent_is_refused(make_model, processor, tmp_path):
    with pytest.raises(ValueError, match="a hybrid of 4 frames with 3 global tokens and frame tokens; expected"):
        save_as_clip(make_model(), processor, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


# variants


@pytest.fixture
def make_variant(make_config):
    """Return a function that makes a tiny model of a variant; all variants share their random weights."""

    def make(name: str, **fields) -> PigForRetrieval:
        variant = (FRAMEWORKS | CONTROLS | MECHANISMS)[name]
        torch.manual_seed(0)
        weights = PigForRetrieval(make_config()).state_dict()
        model = variant.model_class(make_config(**{**variant.fields, **fields})).eval()
        model.load_state_dict({key: weights[key] for key in model.state_dict().keys() & weights.keys()}, strict=False)
        return model

    return make


def test_variants_are_trained_and_loaded_with_their_class(make_variant, batch, tmp_path):
    for name, variant in (CONTROLS | MECHANISMS).items():
        model = make_variant(name, **variant.fields)
        model.save_pretrained(tmp_path / name)
        loaded = variant.model_class.from_pretrained(tmp_path / name).eval()
        loss = model(**batch, return_loss=True).loss
        torch.testing.assert_close(loaded(**batch, return_loss=True).loss, loss)
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        with variant.patch_training():
            from modeling_pig.training import start

            assert start.PigForRetrieval is variant.model_class


def test_a_detached_target_trains_the_generator_only(make_variant, batch):
    found = {}
    for name, fields in (("hybrid", {}), ("detached_target", {}), ("hybrid", {"reconstruction_loss_weight": 0.0})):
        model = make_variant(name, **fields)
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        key = "without" if fields else name
        found[key] = (model.text_projection.weight.grad, model.generator.eos_embedding.grad)
    for position, equal in ((0, "without"), (1, "hybrid")):
        torch.testing.assert_close(found["detached_target"][position], found[equal][position])
    assert not torch.allclose(found["hybrid"][0], found["without"][0])


def test_several_vectors_are_scored_by_the_best(make_variant, batch):
    videos = {"pixel_values_videos": batch["pixel_values_videos"]}
    for name in ("four_pseudo_queries", "two_tower_of_4_vectors"):
        model = make_variant(name)
        vectors = model.get_video_features(**videos).pooler_output
        assert vectors.shape[1] == 4
        texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
        cosines = nn.functional.cosine_similarity(texts[:, None, None], vectors[None], dim=-1)
        torch.testing.assert_close(model.similarity(texts, vectors), cosines.amax(dim=-1))
    # Equal end tokens give four times what the hybrid stores.
    several = make_variant("four_pseudo_queries")
    with torch.no_grad():
        several.more_ends.copy_(several.generator.eos_embedding.expand_as(several.more_ends))
    expected = make_variant("hybrid").get_video_features(**videos)
    features = several.get_video_features(**videos)
    torch.testing.assert_close(features.pooler_output, expected.pooler_output[:, None].expand(-1, 4, -1))
    losses = [model(**batch, return_loss=True) for model in (several, make_variant("hybrid"))]
    torch.testing.assert_close(losses[0].loss, losses[1].loss)


def test_end_tokens_start_near_the_first_and_distinct(make_model, processor, tmp_path):
    save_as_clip(make_model(framework="two_tower", vision_config=PLAIN_CLIP), processor, tmp_path)
    model_class = MECHANISMS["four_pseudo_queries"].model_class
    model = model_class.from_clip(str(tmp_path), num_frames=4, num_selected_patches=5)
    ends = torch.stack([model.generator.eos_embedding, *model.more_ends])
    assert torch.pdist(ends).min() > 0 and (ends - ends[0]).abs().max() < 6 * ends[0].std()


# intervals


def test_intervals_over_seeds():
    # With two values the quantile p of Student's t is tan(pi (p - 1/2)), and the standard error half their distance.
    figure = intervals.mean_and_interval([10.0, 14.0])
    half = math.tan(math.pi * 0.475) * 2
    assert figure["mean"] == 12 and figure["interval_95"] == pytest.approx([12 - half, 12 + half], rel=1e-4)
    assert intervals.mean_and_interval([3.0, 3.0, 3.0])["interval_95"] == [3, 3]
    assert intervals.mean_and_interval([3.0]) == {"mean": 3.0, "interval_95": None, "values": [3.0]}
    assert intervals.format_figure(figure) == "12.0 [-13.4, 37.4]" and intervals.format_figure(
        {**figure, "interval_95": None}
    )
    with pytest.raises(ValueError, match="There are 17 seeds"):
        intervals.mean_and_interval([1.0] * 17)


def test_differences_are_paired():
    def figures(recall: float) -> dict:
        metrics = {"R@1": recall, "R@5": 50.0, "R@10": 60.0, "MdR": 4.0}
        return {"text_to_video": metrics, "video_to_text": metrics}

    one, other = {0: figures(10), 1: figures(20), 2: figures(99)}, {1: figures(18), 0: figures(8)}
    difference = intervals.paired_differences(one, other)["text_to_video R@1"]
    assert difference == {"mean": 2, "interval_95": [2, 2], "values": [2, 2]}  # independent of the spread of the seeds


# costs


def test_scores_of_a_gallery_are_those_of_the_model(make_model, monkeypatch):
    monkeypatch.setattr(costs, "_BLOCK", 4)
    model = make_model(framework="single_tower", interaction_num_attention_heads=2)
    for parameter in model.interaction.parameters():
        nn.init.normal_(parameter, std=0.3)
    query = nn.functional.normalize(torch.randn(1, 32), dim=-1)
    context = torch.randn(10, 8, 32)
    with torch.inference_mode():
        expected = model.similarity(query, context)
        stored = costs.keys_and_values(model.interaction, context)
        for found in (
            costs._score(model.interaction, query, context),
            costs._score_stored(model.interaction, query, stored),
        ):
            torch.testing.assert_close(found, expected)


def test_costs(make_config, processor):
    models = {name: PigForRetrieval(make_config(framework=name)).eval() for name in FRAMEWORKS}
    found = costs.measure_costs(models, processor, [50, 100, 1000], 4 * 8 * 32 * 60, rerank=[20], repeats=1)
    of = found["searches"]
    # 8 context tokens: class token, 3 global tokens, 4 frame tokens
    assert {name: row["bytes_per_video"] for name, row in of.items()} == {
        "hybrid": 4 * 32,
        "two_tower": 4 * 32,
        "4 vectors": 4 * 4 * 32,
        "best 20 re-ranked": 4 * 32 + 2 * 8 * 32,
        "single_tower": 4 * 8 * 32,
        "single_tower, keys and values stored": 4 * 2 * 8 * 32,
    }
    assert of["hybrid"]["parameters"] > of["single_tower"]["parameters"] > of["two_tower"]["parameters"]
    rows = of["single_tower"]["query_seconds"]
    assert [row["measured"] for row in rows] == [True, False, False]
    text = found["text_seconds"]
    assert rows[2]["seconds"] - text == pytest.approx(20 * (rows[0]["seconds"] - text))
    assert [row["measured"] for row in of["hybrid"]["query_seconds"]] == [True, True, False]


def test_reranking_scores_the_best_videos(make_model):
    interaction = make_model(framework="single_tower").interaction
    query = nn.functional.normalize(torch.randn(1, 32), dim=-1)
    score = costs._reranking(interaction, query, num_tokens=8, count=5)
    assert score(torch.randn(40, 32)).shape == (1, 5) and score(torch.randn(3, 32)).shape == (1, 3)


# the oracle


def test_the_oracle_pools_each_video_for_its_other_captions(make_model, processor, shape_videos):
    model = make_model(framework="single_tower").eval()
    for parameter in model.interaction.parameters():
        nn.init.normal_(parameter, std=0.3)
    rows = [
        {"video": str(video), "captions": [f"a {colour} circle", f"{colour} moves left", f"the {colour} star"]}
        for video, colour in zip(shape_videos, ("red", "blue", "green", "yellow", "white"), strict=False)
    ]
    found = rank_by_other_captions(PigEncoder(model, processor), rows, None)
    ranks = []
    with torch.inference_mode():
        videos = processor(videos=[row["video"] for row in rows], return_tensors="pt")
        context = model.get_video_features(**videos).context_embeds
        texts = [
            nn.functional.normalize(
                model.get_text_features(**processor(text=row["captions"], return_tensors="pt")).pooler_output, dim=-1
            )
            for row in rows
        ]
        for number in range(3):
            pooled = []
            for of_video, tokens in zip(texts, context, strict=True):
                query = (of_video.sum(dim=0) - of_video[number]) / 2
                query = nn.functional.normalize(query, dim=0)[None, None]
                pooled.append(nn.functional.normalize(model.interaction(query, tokens[None])[0, 0], dim=0))
            for video, of_video in enumerate(texts):
                scores = torch.stack(pooled) @ of_video[number]
                ranks.append(int((scores > scores[video]).sum()) + 1)
    assert found == retrieval_metrics(np.array(ranks)) and found["MnR"] > 1
