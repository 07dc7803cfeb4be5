"""Test ranks and metrics against brute force, closed forms, torchmetrics and the forward pass, and the report."""

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from rich.console import Console
from torchmetrics.functional.retrieval import retrieval_hit_rate

import modeling_pig
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.evaluation import evaluator
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.metrics import (
    bootstrap_intervals,
    ranks_in_both_directions,
    ranks_of_targets,
    ranks_with_querybank,
    recall_curves,
    retrieval_metrics,
)
from modeling_pig.evaluation.records import Evaluation, EvaluationRecord
from modeling_pig.evaluation.report import print_evaluation, result_record
from modeling_pig.training.recipe import Recipe
from tests.test_training import DEMO


OWNERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 4])  # the video of each text; one to three texts per video
DUAL = "_dual_softmax"


def brute_force_rank(scores: list[float], target: int) -> float:
    """Return the mean rank of the target over all orders of the tied candidates."""
    better = sum(score > scores[target] for score in scores)
    tied = sum(score == scores[target] for score in scores)
    return float(np.mean([1 + better + position for position in range(tied)]))


def best_of_texts(scores: np.ndarray, owners: torch.Tensor) -> np.ndarray:
    """Reduce scores (texts, videos) to the highest score per owner of texts, (videos, owners)."""
    return np.array(
        [[max(scores[owners == owner, video]) for owner in owners.unique()] for video in range(scores.shape[1])]
    )


def test_ranks_equal_brute_force_also_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40, 12), generator=generator).float()
    targets = torch.randint(0, 12, (40,), generator=generator)
    ranks = ranks_of_targets(scores, targets)
    expected = [brute_force_rank(row.tolist(), int(target)) for row, target in zip(scores, targets, strict=True)]
    assert ranks.tolist() == expected


def test_tie_policies():
    scores, target = torch.tensor([[0.5, 0.5, 0.9, 0.5, 0.1]]), torch.tensor([1])
    assert ranks_of_targets(scores, target, "optimistic") == [2]
    assert ranks_of_targets(scores, target, "expected") == [3]
    assert ranks_of_targets(scores, target, "pessimistic") == [4]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error(wrong):
    scores = torch.tensor([[1.0, wrong], [0.0, 1.0]])
    with pytest.raises(ValueError, match="1 of 4 scores are NaN or infinite"):
        ranks_of_targets(scores, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 of 2 scores are NaN or infinite"):
        ranks_in_both_directions(scores.__getitem__, torch.tensor([0, 1]), 2, block_size=1)


def test_metrics_by_hand():
    metrics = retrieval_metrics(np.array([1, 2, 5, 6, 10, 11, 1, 100]))
    assert metrics == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0, "R@50": 87.5, "MdR": 5.5, "MnR": 17.0}


def test_recall_curves_by_hand():
    ranks = np.array([1, 2, 5.5, 6, 10, 11, 1, 60])
    curves = recall_curves({"text_to_video": ranks, "video_to_text": np.ones(3)}, 60)
    assert curves == {
        "k": [1, 2, 5, 10, 20, 50, 60],
        "text_to_video": [25.0, 37.5, 37.5, 75.0, 87.5, 87.5, 100.0],
        "video_to_text": [100.0] * 7,
    }
    assert json.loads(json.dumps(curves)) == curves
    ends = {1: [1], 2: [1, 2], 3: [1, 2, 3], 10: [1, 2, 5, 10], 1004: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1004]}
    assert {num_videos: recall_curves({}, num_videos)["k"] for num_videos in ends} == ends


@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_both_directions_with_several_captions_equal_brute_force(block_size):
    generator = torch.Generator().manual_seed(block_size)
    scores = torch.randint(0, 4, (10, 5), generator=generator).float()  # most of them tied
    ranks = ranks_in_both_directions(scores.__getitem__, OWNERS, 5, block_size=block_size)
    best = best_of_texts(scores.numpy(), OWNERS)
    assert list(ranks) == ["text_to_video", "video_to_text"]
    assert ranks["text_to_video"].tolist() == [brute_force_rank(scores[i].tolist(), int(OWNERS[i])) for i in range(10)]
    assert ranks["video_to_text"].tolist() == [brute_force_rank(best[i].tolist(), i) for i in range(5)]


@pytest.mark.parametrize("block_size", [1, 3])
def test_dual_softmax_equals_the_dense_computation(block_size):
    scores = 0.3 * torch.randn(10, 5, generator=torch.Generator().manual_seed(3))
    scores[1, 2:] = 0  # ties also of the products
    ranks = ranks_in_both_directions(scores.__getitem__, OWNERS, 5, dual_softmax=True, block_size=block_size)
    plain = ranks_in_both_directions(scores.__getitem__, OWNERS, 5)
    assert all((ranks[name] == plain[name]).all() for name in plain)

    dense = scores.double().numpy()
    exp = np.exp(100 * dense)
    by_text = dense * exp / exp.sum(axis=0)  # each video's queries are the texts
    by_video = best_of_texts(dense * exp / exp.sum(axis=1, keepdims=True), OWNERS)
    expected = [brute_force_rank(by_text[i].tolist(), int(OWNERS[i])) for i in range(10)]
    assert ranks["text_to_video" + DUAL].tolist() == expected != plain["text_to_video"].tolist()
    expected = [brute_force_rank(by_video[i].tolist(), i) for i in range(5)]
    assert ranks["video_to_text" + DUAL].tolist() == expected


@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_qb_norm_equals_the_dense_computation(block_size):
    """Compare with the dynamic inverted softmax of the paper, written with dense matrices and exponentials."""
    generator = torch.Generator().manual_seed(0)
    bank, scores = 0.3 * torch.randn(4, 5, generator=generator), 0.3 * torch.randn(10, 5, generator=generator)
    blocks = (scores.__getitem__, bank.__getitem__, len(bank))
    ranks = ranks_with_querybank(*blocks, OWNERS, 5, block_size=block_size)
    hubs = set(bank.argmax(1).tolist())
    expected, num_normalised = [], 0
    for row, owner in zip(scores.double().numpy(), OWNERS.tolist(), strict=True):
        if int(row.argmax()) in hubs:
            row, num_normalised = np.exp(20 * row) / np.exp(20 * bank.double().numpy()).sum(axis=0), num_normalised + 1
        expected.append(brute_force_rank(row.tolist(), owner))
    assert ranks.tolist() == expected
    assert 0 < num_normalised < 10 and expected != ranks_of_targets(scores, OWNERS).tolist()


def hit_rate(scores: torch.Tensor, targets: torch.Tensor, k: int) -> float:
    """Compute R@k with torchmetrics, query by query."""
    candidates = torch.arange(scores.shape[1])
    hits = [retrieval_hit_rate(row, candidates == t, top_k=k) for row, t in zip(scores, targets, strict=True)]
    return 100 * float(torch.stack(hits).mean())


def test_recalls_equal_those_of_torchmetrics():
    owners = torch.arange(180) // 3
    scores = torch.rand(180, 60, generator=torch.Generator().manual_seed(0))
    scores[torch.arange(180), owners] += 0.3
    ranks = ranks_in_both_directions(scores.__getitem__, owners, 60)
    best = torch.from_numpy(best_of_texts(scores.numpy(), owners))
    for direction, matrix, targets in [("text_to_video", scores, owners), ("video_to_text", best, torch.arange(60))]:
        metrics = retrieval_metrics(ranks[direction])
        for k in (1, 5, 10, 50):
            assert metrics[f"R@{k}"] == pytest.approx(hit_rate(matrix, targets, k), abs=1e-4)
        assert 0 < metrics["R@5"] < 100


# intervals


def test_interval_of_a_recall_equals_that_of_a_binomial():
    ranks = np.where(np.arange(400) < 120, 1.0, 20.0)  # 30 % found
    intervals = bootstrap_intervals(ranks, np.arange(400), num_samples=2000)
    half = 1.96 * 100 * np.sqrt(0.3 * 0.7 / 400)
    assert intervals["R@1"] == pytest.approx([30 - half, 30 + half], abs=0.6)
    assert intervals["MnR"] == pytest.approx([14.3 - 0.19 * half, 14.3 + 0.19 * half], abs=0.12)
    assert intervals["MdR"] == [20, 20] and intervals["R@50"] == [100, 100]


def test_intervals_resample_videos_instead_of_captions():
    ranks = np.random.default_rng(0).integers(1, 30, size=50).astype(float)
    alone = bootstrap_intervals(ranks, np.arange(50), num_samples=200)
    together = bootstrap_intervals(np.repeat(ranks, 20), np.repeat(np.arange(50), 20), num_samples=200)
    for name, interval in alone.items():
        assert together[name] == pytest.approx(interval)


def test_intervals_are_reproducible_by_seed():
    ranks = np.random.default_rng(0).integers(1, 30, size=50).astype(float)
    first, second, other = (bootstrap_intervals(ranks, np.arange(50), 100, seed) for seed in (1, 1, 2))
    assert first == second != other


# a split


@pytest.fixture
def split(shape_videos) -> list[dict]:
    return [
        {"video_id": path.stem, "video": str(path), "captions": [f"a red circle {i}", "moves left"]}
        for i, path in enumerate(shape_videos)
    ]


@pytest.mark.parametrize("framework", ["hybrid", "two_tower", "single_tower"])
def test_evaluator_equals_the_forward_pass(make_model, processor, split, framework, monkeypatch):
    monkeypatch.setattr(evaluator, "CAPTIONS_PER_BLOCK", 4)
    monkeypatch.setattr(evaluator, "MAX_POOLED_VALUES", 4 * 32 * 2)  # two videos at a time
    model = make_model(framework=framework).train()
    result = evaluate(PigEncoder(model, processor), split, batch_size=2, progress=False, dual_softmax=True).to_dict()
    assert model.training  # unchanged
    assert (result["num_queries"], result["num_videos"], result["num_videos_in_split"]) == (10, 5, 5)

    texts = [caption for row in split for caption in row["captions"]]
    inputs = processor(text=texts, videos=[row["video"] for row in split], return_tensors="pt")
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
        scores = outputs.logits_per_text / model.logit_scale.exp()
    ranks = ranks_in_both_directions(scores.__getitem__, torch.arange(10) // 2, 5, dual_softmax=True)
    # "moves left" is asked five times with the same scores, so no two of these ranks are near a tie
    assert {name: result[name] for name in ranks} == {name: retrieval_metrics(found) for name, found in ranks.items()}
    assert result["recall_curve"] == recall_curves(ranks, 5)


@pytest.mark.parametrize("framework", ["hybrid", "single_tower"])
def test_reranking_equals_brute_force(framework, make_model, processor, split, monkeypatch):
    monkeypatch.setattr(evaluator, "CAPTIONS_PER_BLOCK", 4)
    model = make_model(framework=framework).eval()
    for weight in model.interaction.parameters():  # at first all scores of a video are nearly equal
        torch.nn.init.normal_(weight)
    result = evaluate(PigEncoder(model, processor), split, progress=False, rerank=3).to_dict()
    assert result["rerank"] == 3
    texts = [caption for row in split for caption in row["captions"]]
    inputs = processor(text=texts, videos=[row["video"] for row in split], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
        features = model.get_video_features(inputs["pixel_values_videos"])
        pooled = model.similarity(outputs.text_embeds, features.context_embeds)
        by_vector = outputs.text_embeds @ torch.nn.functional.normalize(features.pooler_output, dim=-1).t()
    ranks = []
    for query, (first, again) in enumerate(zip(by_vector.tolist(), pooled.tolist(), strict=True)):
        order = sorted(range(5), key=lambda video, first=first: -first[video])
        order = sorted(order[:3], key=lambda video, again=again: -again[video]) + order[3:]
        ranks.append(order.index(query // 2) + 1)
    assert result["text_to_video_reranked"] == retrieval_metrics(np.array(ranks))
    assert result["text_to_video_reranked"]["MnR"] != result["text_to_video"]["MnR"]
    for other, count, message in (("hybrid", 0, "rerank is 0: expected 1"), ("two_tower", 3, "cannot re-rank")):
        with pytest.raises(ValueError, match=message):
            evaluate(PigEncoder(make_model(framework=other), processor), split, progress=False, rerank=count)


def test_half_precision_models_are_evaluated(make_model, processor, split):
    for framework in ("hybrid", "single_tower"):
        encoder = PigEncoder(make_model(framework=framework).bfloat16(), processor)
        result = evaluate(encoder, split, progress=False).to_dict()
        assert result["num_videos"] == 5


def test_undecodable_videos_are_listed_and_not_in_the_gallery(make_model, processor, split, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    missing = {"video_id": "lost", "video": "", "captions": ["a", "b"]}
    unreadable = {"video_id": "bad", "video": str(broken), "captions": ["a"]}
    encoder = PigEncoder(make_model(), processor)
    whole = evaluate(encoder, split, progress=False).to_dict()
    result = evaluate(encoder, [missing, *split[:2], unreadable, *split[2:]], progress=False).to_dict()
    assert (result["num_videos"], result["num_videos_in_split"], result["num_queries"]) == (5, 7, 10)
    assert len(result["failures"]) == 2
    assert "lost" in result["failures"][0] and "broken.mp4" in result["failures"][1]
    for direction in ("text_to_video", "video_to_text"):
        assert result[direction] == whole[direction]
    with pytest.raises(ValueError, match="None of the 2 videos can be decoded; the first: lost"):
        evaluate(PigEncoder(make_model(), processor), [missing, unreadable], progress=False)
    with pytest.raises(ValueError, match="The video silent has no captions"):
        evaluate(
            PigEncoder(make_model(), processor),
            [{"video_id": "silent", "video": "a.mp4", "captions": []}],
            progress=False,
        )


def test_segments_of_a_file_are_different_videos(make_model, processor, split):
    path = split[0]["video"]
    parts = [
        {"video_id": f"part {i}", "video": path, "captions": [text], "start": start, "end": end}
        for i, (text, start, end) in enumerate([("a red circle", None, 0.5), ("moves left", 0.5, None)])
    ]
    model = make_model()

    def mean_rank(rows: list[dict], ties: str) -> float:
        result = evaluate(PigEncoder(model, processor), rows, progress=False, ties=ties).to_dict()
        assert (result["num_videos"], result["num_queries"], result["failures"]) == (2, 2, [])
        return result["text_to_video"]["MnR"]

    assert mean_rank(parts, "optimistic") == mean_rank(parts, "pessimistic")  # the two segments are different videos
    same = [parts[0], parts[0]]
    assert (mean_rank(same, "optimistic"), mean_rank(same, "pessimistic")) == (1, 2)


# the report


def test_record_contains_all_settings_of_the_evaluation(model_folder, processor, split):
    model = modeling_pig.PigForRetrieval.from_pretrained(model_folder)
    encoder = PigEncoder(model, processor, model_folder, model_fingerprint(model_folder))
    result = evaluate(encoder, split, progress=False, dual_softmax=True, num_bootstrap=20, seed=5).to_dict()
    recipe = asdict(Recipe.from_yaml(DEMO))
    evaluation = Evaluation(**result)
    record = result_record(evaluation, encoder, "test", recipe, "five shapes").to_dict()
    record = json.loads(json.dumps(record))
    directions = ["text_to_video", "video_to_text", "text_to_video" + DUAL, "video_to_text" + DUAL]
    assert list(record["intervals_95"]) == directions
    for direction in directions:
        for name, (low, high) in record["intervals_95"][direction].items():
            assert low <= record[direction][name] <= high
    assert (record["num_bootstrap"], record["seed"], record["ties"]) == (20, 5, "expected")
    assert (record["benchmark"], record["split"], record["protocol"]) == ("moving_shapes", "test", "five shapes")
    assert record["options"] == record["recipe"]["data"]["options"] == recipe["data"]["options"]
    assert len(record["model_fingerprint"]) == 16 and record["model_revision"] is None
    assert (record["device"], record["dtype"]) == ("cpu", "float32")
    assert record["versions"]["modeling_pig"] == modeling_pig.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert {"transformers", "python", "av"} < set(record["versions"])


METRICS = {"R@1": 37.6, "R@5": 60.0, "R@10": 75.0, "MdR": 2.0, "MnR": 1012.25}
COUNTS = {"num_queries": 13350, "num_videos": 1335, "num_videos_in_split": 1500}


def test_record_contains_the_revision_of_a_hub_model(make_model, processor, tmp_path):
    snapshot = tmp_path / "models--me--shapes/snapshots" / ("0123456789abcdef" * 3)[:40]
    model = make_model()
    model.save_pretrained(snapshot)
    processor.save_pretrained(snapshot)
    evaluation = Evaluation(text_to_video=METRICS, video_to_text=METRICS, ties="expected", failures=[], **COUNTS)
    encoder = load_encoder(str(snapshot), dtype="bfloat16")
    record = result_record(evaluation, encoder, "test", asdict(Recipe.from_yaml(DEMO)))
    assert record.model_revision == snapshot.name and record.dtype == "bfloat16"


def test_printed_table_has_counts_and_intervals():
    intervals = dict.fromkeys(METRICS, [1000.0, 1024.5]) | {"R@1": [34.9, 40.3]}
    record = {"benchmark": "vatex", "split": "test", "ties": "expected", "num_bootstrap": 1000, **COUNTS}
    record |= {"text_to_video": METRICS, "video_to_text": METRICS}
    console = Console(width=80, record=True, file=io.StringIO())
    print_evaluation(EvaluationRecord.model_construct(**record), console)
    plain = console.export_text()
    assert "vatex, test: 13,350 queries, 1,335 of 1,500 videos, ties expected" in plain
    assert "37.6" in plain and "[" not in plain and "dual softmax" not in plain

    record |= {"text_to_video" + DUAL: METRICS | {"R@1": 44.0}, "video_to_text" + DUAL: METRICS}
    names = [direction + suffix for suffix in ("", DUAL) for direction in ("text_to_video", "video_to_text")]
    names += ["text_to_video_reranked", "text_to_video_qb_norm"]
    record |= {"rerank": 50, names[-2]: METRICS | {"R@1": 45.0}}
    record |= {"num_querybank": 40_000, "querybank": "training captions", names[-1]: METRICS | {"R@1": 46.0}}
    record["intervals_95"] = dict.fromkeys(names, intervals)
    print_evaluation(EvaluationRecord.model_construct(**record), console)
    table, dual = console.export_text().split("with dual softmax")
    assert table.count("37.6 [34.9, 40.3]") == 2 and "1,012.2 [1,000.0, 1,024.5]" in table and "44.0" not in table
    dual, reranked = dual.split("the best 50 videos of each query re-ranked")
    assert "44.0" in dual and "1,000 bootstrap samples" in dual
    reranked, qb_norm = reranked.split("with QB-Norm, 40,000 queries in the bank (training captions)")
    assert reranked.count("45.0 [34.9, 40.3]") == 1 and "video-to-text" not in reranked
    assert qb_norm.count("46.0 [34.9, 40.3]") == 1 and "video-to-text" not in qb_norm
