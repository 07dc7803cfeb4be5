"""Comparison of the frameworks: its phases on tiny data, and its modules against closed forms."""

import json
import math
import sys
from pathlib import Path

import compare_frameworks
import PIL.Image
import pytest
import torch
import yaml
from comparison import costs, diagnosis, intervals, stronger
from comparison.runs import Settings, read_json
from comparison.stronger import STRONGER
from comparison.variants import ABLATIONS, FRAMEWORKS
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from modeling_pig import PigForRetrieval, PigProcessor
from modeling_pig.training.recipe import Recipe
from modeling_pig.training.start import save_as_clip


ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "configuration/recipes"
PLAIN_CLIP = {"num_frames": 1, "num_global_tokens": 0, "use_frame_tokens": False}


# the phases


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Path:
    """Settings of a comparison that takes seconds."""
    folder = tmp_path_factory.mktemp("settings")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name in ("moving_shapes_clip", "moving_shapes_from_clip"):
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        recipe["data"] |= {"options": {"train": 16, "validation": 5, "test": 6, "seed": 0}, "num_workers": 0}
        recipe["training"] |= {"batch_size": 8, "epochs": 1}
        if name == "moving_shapes_clip":
            recipe["model"]["config"] = str(ROOT / "configuration/models/tiny.json")
            vision = recipe["model"]["overrides"]["vision_config"]
            recipe["model"]["overrides"] |= {
                "projection_dim": 32,
                "text_config": {**sizes, "vocab_size": 700, "max_position_embeddings": 77},
                "vision_config": {**vision, **sizes, "image_size": 32},
            }
        else:
            recipe["model"]["overrides"] |= {"num_frames": 2, "num_selected_patches": 3}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    tree = {
        "clip": "moving_shapes_clip.yaml",
        "run": "moving_shapes_from_clip.yaml",
        "regimes": {
            "plain": {"options": {}},
            "clutter": {"options": {"shapes": [4], "scale": 0.6, "named": 2}, "overrides": ["training.epochs=2"]},
        },
        "regime_seeds": [7],
        "clear_gap": 2.0,
        "seeds": [0, 1],
        "variant_seeds": [0],
        "galleries": [20, 40],
        "measured_bytes": 4 * 32 * 30,
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(tree))
    return folder / "settings.yaml"


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
    output = tmp_path / "runs/comparison"
    for phase in ("compare", "others", "diagnose", "ablate", "strengthen"):
        with pytest.raises(SystemExit, match="error: There is no runs/comparison/regime.json: the regime is chosen"):
            run_phase(phase)
    assert not output.exists()

    run_phase("regime")
    choice = read_json(output / "regime.json")
    gaps = {
        name: regime["single_tower minus two_tower"]["text_to_video R@1"]["mean"]
        for name, regime in choice["regimes"].items()
    }
    assert gaps.keys() == {"plain", "clutter"} and choice["chosen"] == max(gaps, key=gaps.get)
    assert choice["clear_headroom"] == (gaps[choice["chosen"]] >= 2) and "date" in choice["environment"]
    runs = [path.name for path in output.glob("regimes/*/*-seed*")]
    assert sorted(runs) == 2 * ["single_tower-seed7"] + 2 * ["two_tower-seed7"]
    for folder in output.glob("regimes/*/*-seed*"):
        assert read_json(folder / "figures.json").keys() == {"validation"}
    assert len({Recipe.from_yaml(folder / "recipe.yaml").training.epochs for folder in output.glob("*/*/*7")}) == 2
    words = CLIPTokenizer.from_pretrained(output / "regimes/plain/clip/clip").tokenize("a blue circle moves")
    assert words == ["a</w>", "blue</w>", "circle</w>", "moves</w>"]  # although no caption of a still contains "moves"

    run_phase("regime")
    assert "a choice is final" in capsys.readouterr().out
    assert read_json(output / "regime.json") == choice

    run_phase("compare")
    report = read_json(output / "comparison.json")
    regime = output / "regimes" / choice["chosen"]
    for split in ("validation", "test"):
        for name, summary in report[split]["frameworks"].items():
            found = [
                read_json(regime / f"{name}-seed{seed}/figures.json")[split]["text_to_video"]["R@5"] for seed in (0, 1)
            ]
            assert summary["text_to_video R@5"]["values"] == found
        assert len(report[split]["paired_differences"]) == 3
    recipes = [Recipe.from_yaml(regime / f"{name}-seed1/recipe.yaml") for name in FRAMEWORKS]
    assert len({str(recipe.to_dict()).replace(recipe.model.overrides["framework"], "") for recipe in recipes}) == 1
    for picture in ("tradeoff.png", "latency.png"):
        with PIL.Image.open(output / picture) as image:
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 100

    # Finished runs are not repeated.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".safetensors", ".jsonl")}
    run_phase("compare", "--seeds", "0")
    assert read_json(output / "comparison.json")["seeds"] == [0]
    assert {path: path.stat().st_mtime_ns for path in before} == before

    run_phase("others")
    others = read_json(output / "other_regimes.json")["regimes"]
    assert others.keys() == gaps.keys()
    for name, gap in gaps.items():  # the runs of the choice, and the hybrid's
        assert others[name]["paired_differences"]["single_tower minus two_tower"]["text_to_video R@1"]["mean"] == gap
        assert (output / f"regimes/{name}/hybrid-seed7/figures.json").exists()

    run_phase("diagnose", "--seeds", "0")
    summary = read_json(output / "diagnosis.json")["summary"]
    for name, way in (("hybrid", "stored"), ("single_tower", "each_query")):
        stored = read_json(regime / f"{name}-seed0/figures.json")["test"]["text_to_video"]
        for metric in ("R@1", "MnR"):
            assert summary[f"test {name} recall {way} {metric}"]["mean"] == pytest.approx(stored[metric], abs=0.1)
    gradients = {key.split()[3] for key in summary if key.startswith("train hybrid gradients ")}
    assert {"text", "generator", "video"} <= gradients
    assert "interaction" not in gradients  # the reconstruction loss does not reach it

    run_phase("ablate", "--variants", "patches_0", "pseudo_query_alone")
    table = read_json(output / "ablations.json")["test"]
    assert list(table) == ["hybrid", "patches_0", "pseudo_query_alone"]
    assert table["hybrid"]["minus hybrid"]["text_to_video R@1"]["mean"] == 0
    saved = PigForRetrieval.from_pretrained(regime / "patches_0-seed0/model")
    assert saved.config.num_selected_patches == 0

    with pytest.raises(SystemExit, match="no variant patches_0 in this phase: choose from several_pseudo_queries, "):
        run_phase("strengthen", "--variants", "patches_0")
    run_phase("strengthen")
    table = read_json(output / "stronger.json")["test"]
    assert list(table) == ["hybrid", "several_pseudo_queries", "hard_negatives", "distilled", "all_captions"]
    losses = [
        json.loads((regime / f"{name}-seed0/metrics.jsonl").read_text().splitlines()[0])["reconstruction"]
        for name in ("hybrid", "all_captions")
    ]
    assert losses[0] != losses[1]  # at the first step, with equal weights and captions

    tree = yaml.safe_load(settings.read_text())
    tree["regimes"][choice["chosen"]] = {"options": {"named": 1}}
    changed = settings.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(tree))
    with pytest.raises(SystemExit, match="with other settings"):
        run_phase("compare", "--settings", str(changed))


@pytest.mark.parametrize("name", ["full", "quick"])
def test_settings_of_the_repository(name):
    settings = Settings.from_yaml(ROOT / f"configuration/comparison/{name}.yaml")
    assert not set(settings.seeds) & set(settings.regime_seeds)
    clip, run = (Recipe.from_yaml(path, settings.overrides) for path in (settings.clip, settings.run))
    assert clip.model.overrides["framework"] == "two_tower" and run.model.init == "clip"
    assert PLAIN_CLIP.items() <= clip.model.overrides["vision_config"].items()


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
def videos(batch) -> dict[str, torch.Tensor]:
    """The video inputs of the batch."""
    return {"pixel_values_videos": batch["pixel_values_videos"]}


@pytest.fixture
def make_variant(make_config):
    """Return a function that makes a tiny model of a variant; all variants share their random weights."""

    def make(name: str, **fields) -> PigForRetrieval:
        variant = (FRAMEWORKS | ABLATIONS | STRONGER)[name]
        torch.manual_seed(0)
        weights = PigForRetrieval(make_config()).state_dict()
        model = variant.model_class(make_config(**{**variant.fields, **fields})).eval()
        model.load_state_dict({key: weights[key] for key in model.state_dict().keys() & weights.keys()}, strict=False)
        return model

    return make


def test_variants_are_trained_and_loaded_with_their_class(make_variant, batch, tmp_path):
    for name, variant in (ABLATIONS | STRONGER).items():
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
        assert start.PigForRetrieval is PigForRetrieval


def test_a_detached_target_keeps_the_loss_and_the_gradient_of_the_retrieval_loss(make_variant, batch):
    found = {}
    for name in ("hybrid", "detached_target", "no_reconstruction"):
        model = make_variant(name)
        outputs = model(**batch, return_loss=True)
        outputs.loss.backward()
        found[name] = outputs.loss, model.text_projection.weight.grad, model.generator.eos_embedding.grad
    for position, equal in ((0, "hybrid"), (1, "no_reconstruction"), (2, "hybrid")):
        torch.testing.assert_close(found["detached_target"][position], found[equal][position])
    assert not torch.allclose(found["hybrid"][1], found["no_reconstruction"][1])


def test_embeddings_without_interaction(make_variant, videos):
    features = make_variant("pseudo_query_alone").get_video_features(**videos)
    torch.testing.assert_close(features.pooler_output, features.pseudo_query_embeds)
    features = make_variant("class_token_plus_pseudo_query").get_video_features(**videos)
    normalised = (
        nn.functional.normalize(embeds, dim=-1)
        for embeds in (features.context_embeds[:, 0], features.pseudo_query_embeds)
    )
    torch.testing.assert_close(features.pooler_output, sum(normalised))


def test_keys_with_patches(make_variant, videos):
    for k, is_equal in ((0, True), (5, False)):
        hybrid, with_patches = (
            make_variant(name, num_selected_patches=k).get_video_features(**videos)
            for name in ("hybrid", "keys_with_patches")
        )
        torch.testing.assert_close(hybrid.pseudo_query_embeds, with_patches.pseudo_query_embeds)
        assert torch.allclose(hybrid.pooler_output, with_patches.pooler_output, atol=1e-6) == is_equal


def test_random_patches(make_variant, videos):
    model = make_variant("random_patches")
    chosen = model.get_video_features(**videos).selected_patches
    assert (chosen == chosen[0]).all() and len(set(chosen[0].tolist())) == 5
    assert (model.get_video_features(**videos).selected_patches == chosen).all()
    model.train()
    assert (model.get_video_features(**videos).selected_patches != chosen).any()
    # The reported patches are the input of the generator.
    read = []
    model.generator.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    features = model.get_video_features(**videos)
    patches = model.selector.token_positions(4, 4 + 4 * 17, torch.device("cpu"))[1][features.selected_patches]
    whole = model.vision_model(**videos).last_hidden_state
    kept = whole.gather(1, patches[..., None].expand(-1, -1, whole.shape[2]))
    expected = model.visual_projection(model.vision_model.post_layernorm(kept))
    torch.testing.assert_close(read[0][:, -5:], expected)


# stronger variants


def test_several_equal_pseudo_queries_give_the_embedding_of_one(make_variant, videos):
    hybrid, several = (make_variant(name) for name in ("hybrid", "several_pseudo_queries"))
    expected = nn.functional.normalize(hybrid.get_video_features(**videos).pooler_output, dim=-1)
    with torch.no_grad():
        several.more_ends.copy_(several.generator.eos_embedding.expand_as(several.more_ends))
    torch.testing.assert_close(several.get_video_features(**videos).pooler_output, expected)
    nn.init.normal_(several.more_ends)
    features = several.get_video_features(**videos)
    assert not torch.allclose(features.pooler_output, expected, atol=1e-3)
    features.pooler_output.square().sum().backward()
    assert (several.more_ends.grad.abs().sum(dim=1) > 0).all()


def test_end_tokens_start_near_the_first_and_distinct(make_model, processor, tmp_path):
    save_as_clip(make_model(framework="two_tower", vision_config=PLAIN_CLIP), processor, tmp_path)
    model = stronger.SeveralPseudoQueries.from_clip(str(tmp_path), num_frames=4, num_selected_patches=5)
    ends = torch.stack([model.generator.eos_embedding, *model.more_ends])
    assert torch.pdist(ends).min() > 0 and (ends - ends[0]).abs().max() < 6 * ends[0].std()


def test_hard_negatives_by_hand():
    logits, ids = torch.randn(4, 4, dtype=torch.double), torch.tensor([7, 8, 7, 9])
    losses = []
    for row in range(4):
        negatives = [column for column in range(4) if ids[column] != ids[row]]
        hardness = [math.exp(0.5 * logits[row, column]) for column in negatives]
        weights = [len(negatives) * value / sum(hardness) for value in hardness]
        rest = sum(weight * math.exp(logits[row, column]) for weight, column in zip(weights, negatives, strict=True))
        losses.append(math.log(math.exp(logits[row, row]) + rest) - logits[row, row])
    assert float(stronger.hard_negative_loss(logits, ids, 0.5)) == pytest.approx(float(sum(losses) / 4))
    plain = nn.functional.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(stronger.hard_negative_loss(logits, None, 0.0), plain)
    assert stronger.hard_negative_loss(logits, torch.zeros(4), 0.5) == 0  # all captions are equal


def test_distillation_adds_the_teachers_loss_and_keeps_the_scores(make_variant, batch):
    hybrid, distilled = (make_variant(name) for name in ("hybrid", "distilled"))
    teacher = make_variant("single_tower")
    teacher.load_state_dict(distilled.state_dict(), strict=False)
    ours, theirs = distilled(**batch, return_loss=True), teacher(**batch, return_loss=True)
    torch.testing.assert_close(ours.logits_per_text, hybrid(**batch).logits_per_text)
    student = torch.distributions.Categorical(logits=ours.logits_per_text)
    columns = torch.distributions.Categorical(logits=ours.logits_per_text.t())
    distance = sum(
        torch.distributions.kl_divergence(torch.distributions.Categorical(logits=logits), of).mean()
        for logits, of in ((theirs.logits_per_text, student), (theirs.logits_per_text.t(), columns))
    )
    plain = hybrid(**batch, return_loss=True).loss
    torch.testing.assert_close(ours.loss, plain + theirs.retrieval_loss + distance, rtol=1e-4, atol=1e-5)


def test_a_pseudo_query_is_compared_with_all_captions(make_variant, batch, processor):
    model = make_variant("all_captions")
    captions = [["a red circle", "a blue square spins"], ["a green ring"], ["a star", "a red star", "a ring moves up"]]
    samples = [
        stronger.Sample(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "\n".join(of_video), str(number), [])
        for number, of_video in enumerate(captions)
    ]
    inputs = stronger.CaptionLinesCollator(processor, 77)(samples)
    assert inputs.pop("video_ids") == ["0", "1", "2"] and not inputs.pop("failures")
    assert inputs["num_others"].tolist() == [1, 0, 2]
    inputs["pixel_values_videos"] = torch.randn(3, 4, 3, 32, 32)
    outputs = model(**inputs, return_loss=True)
    distances = []
    for pseudo_query, of_video in zip(outputs.pseudo_query_embeds, captions, strict=True):
        text_embeds = model.get_text_features(**processor(text=of_video, return_tensors="pt")).pooler_output
        distances.append(2 - 2 * nn.functional.cosine_similarity(pseudo_query.unsqueeze(0), text_embeds))
    torch.testing.assert_close(outputs.reconstruction_loss, torch.cat(distances).mean())
    torch.testing.assert_close(outputs.loss, outputs.retrieval_loss + outputs.reconstruction_loss)


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


def test_the_spread_of_all_variants_is_pooled():
    variants = {"a": {"R@1": {"values": [1.0, 3.0]}}, "b": {"R@1": {"values": [10.0, 10.0]}}}
    half = 4.303 * math.sqrt(((2 + 0) / 2) / 2)  # variances 2 and 0, one degree of freedom each; means of two
    for name, mean in (("a", 2), ("b", 10)):
        figure = intervals.with_pooled_spread(variants)[name]["R@1"]
        assert figure["mean"] == mean and figure["interval_95"] == pytest.approx([mean - half, mean + half])


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
    found = costs.measure_costs(models, processor, [50, 100, 1000], measured_bytes=4 * 8 * 32 * 60, repeats=1)
    of = found["frameworks"]
    size = {name: row["bytes_per_video"] // 4 for name, row in of.items()}
    # class token, 3 global tokens, 4 frame tokens
    assert list(size.values()) == [32, 32, 8 * 32, 2 * 8 * 32]
    assert of["hybrid"]["parameters"] > of["single_tower"]["parameters"] > of["two_tower"]["parameters"]
    rows = of["single_tower"]["query_seconds"]
    assert [row["measured"] for row in rows] == [True, False, False]
    text = found["text_seconds"]
    assert rows[2]["seconds"] - text == pytest.approx(20 * (rows[0]["seconds"] - text))
    assert [row["measured"] for row in of["hybrid"]["query_seconds"]] == [True, True, False]


# diagnosis


def test_cosines_of_pseudo_queries():
    axes = torch.eye(4)
    texts, video_of_text = axes[[0, 1, 2, 3]], torch.tensor([0, 0, 1, 1])
    found = diagnosis.pseudo_query_cosines(texts, video_of_text, 5 * torch.stack([axes[0], axes[2] + axes[3]]))
    # The captions of video 0 are axis 0 (cosine 1) and axis 1 (cosine 0), those of video 1 two axes at 45 degrees.
    assert found["true_pairs"] == pytest.approx((1 + 0 + 2 * math.sqrt(0.5)) / 4)
    assert found["wrong_pairs"] == found["texts_of_other_videos"] == found["texts_of_one_video"] == 0
    assert found["mean_text_with_texts"] == pytest.approx(0.5)  # the diagonal of four axes


def test_entropy_of_the_attention(make_model):
    model = make_model()
    queries, context = torch.randn(6, 32), torch.randn(6, 8, 32)
    nn.init.zeros_(model.interaction.q_proj.weight)
    found = diagnosis.attention_entropy(model, queries, context)
    assert found["entropy_of_uniform"] == pytest.approx(1) and found["largest_weight"] == pytest.approx(1 / 8)
    with torch.no_grad():
        model.interaction.q_proj.weight.copy_(1000 * torch.eye(32))
    found = diagnosis.attention_entropy(model, context[:, 0], context)  # each query attends to its own token
    assert found["entropy_of_uniform"] < 0.01 and found["weight_of_class_token"] > 0.99


def test_the_oracle_changes_true_pairs_only(make_model):
    model = make_model()
    single = make_model(framework="single_tower")
    single.load_state_dict({name: model.state_dict()[name] for name in single.state_dict()})
    texts = nn.functional.normalize(torch.randn(40, 32), dim=-1)
    video_of_text = torch.arange(20).repeat_interleave(2)
    encoded = {"pseudo_queries": torch.randn(20, 32), "context": torch.randn(20, 8, 32)}
    stored = nn.functional.normalize(
        model.interaction(encoded["pseudo_queries"][:, None], encoded["context"])[:, 0], dim=-1
    )
    found = diagnosis.oracle_recall(model, texts, video_of_text, videos=stored, **encoded)
    with torch.inference_mode():
        every = single.similarity(texts, encoded["context"])
        plain = texts @ stored.t()
    for name, of_true, of_others in (
        ("stored", plain, plain),
        ("real_query_on_true_pairs", every, plain),
        ("real_query_on_all_pairs", every, every),
    ):
        ranks = [
            1 + sum(of_others[text, other] > of_true[text, video] for other in range(20) if other != video)
            for text, video in enumerate(video_of_text.tolist())
        ]
        assert found[name]["MnR"] == pytest.approx(float(sum(ranks)) / 40, abs=0.05), name
    assert found["real_query_on_true_pairs"]["MnR"] < found["stored"]["MnR"]


def test_controls_do_not_depend_on_the_pseudo_query(make_model):
    model = make_model()
    texts, video_of_text, context = torch.randn(20, 32), torch.arange(20), torch.randn(20, 8, 32)
    alike = torch.randn(1, 32).repeat(20, 1)  # equal pseudo-queries equal their mean
    stored = diagnosis._pooled(model.interaction, alike[0], context)
    found = diagnosis.oracle_recall(model, texts, video_of_text, alike, context, stored)
    assert found["the_mean_pseudo_query_for_all"] == found["stored"] != found["uniform_attention"]
    nn.init.zeros_(model.interaction.k_proj.weight)  # with equal keys attention is uniform
    stored = diagnosis._pooled(model.interaction, alike[0], context)
    found = diagnosis.oracle_recall(model, texts, video_of_text, alike, context, stored)
    assert found["uniform_attention"] == found["stored"]
