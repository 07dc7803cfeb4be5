"""Ranks and metrics against a sort by hand, in closed form, and through the evaluator."""

import numpy as np
import pytest
import torch

from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.metrics import ranks_in_both_directions, ranks_of_targets, retrieval_metrics


def brute_force_rank(scores: list[float], target: int) -> float:
    """Mean position of the target over all orders of the tied candidates."""
    better = sum(score > scores[target] for score in scores)
    tied = sum(score == scores[target] for score in scores)
    return float(np.mean([1 + better + place for place in range(tied)]))


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_brute_force_also_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
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


def test_nan_scores_are_an_error():
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        ranks_of_targets(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 1]))


def test_metrics_by_hand():
    metrics = retrieval_metrics(np.array([1, 2, 5, 6, 10, 11, 1, 100]))
    assert metrics == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0, "MdR": 5.5, "MnR": 17.0}


@pytest.mark.parametrize("block", [1, 3, 100])
def test_both_directions_with_several_captions_equal_brute_force(block):
    generator = torch.Generator().manual_seed(7)
    video_of_text = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 4])
    scores = torch.rand(10, 5, generator=generator)
    text_ranks, video_ranks = ranks_in_both_directions(scores.split(block), video_of_text, 5)
    assert text_ranks.tolist() == [brute_force_rank(scores[i].tolist(), int(video_of_text[i])) for i in range(10)]
    for video in range(5):
        best = [max(scores[i, video].item() for i in range(10) if video_of_text[i] == owner) for owner in range(5)]
        assert video_ranks[video] == brute_force_rank(best, video)


@pytest.fixture
def split(shape_videos) -> list[dict]:
    return [
        {"video": str(path), "captions": [f"a red circle {i}", "moves left"]} for i, path in enumerate(shape_videos)
    ]


@pytest.mark.parametrize("framework", ["hybrid", "two_tower", "single_tower"])
def test_evaluator_equals_the_forward_pass(make_model, processor, split, framework):
    model = make_model(framework=framework).train()
    figures = evaluate(model, processor, split, batch_size=2, progress=False)
    assert model.training  # left as it was found
    assert (figures["num_queries"], figures["num_videos"], figures["num_videos_in_split"]) == (10, 5, 5)

    texts = [caption for row in split for caption in row["captions"]]
    inputs = processor(text=texts, videos=[row["video"] for row in split], return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**inputs).logits_per_text
    text_ranks, video_ranks = ranks_in_both_directions([logits], torch.arange(10) // 2, 5)
    # "moves left" is asked five times with the same scores, so no two of these ranks are near a tie
    assert figures["text_to_video"] == retrieval_metrics(text_ranks)
    assert figures["video_to_text"] == retrieval_metrics(video_ranks)


def test_a_video_that_cannot_be_decoded_is_named_and_leaves_the_gallery(make_model, processor, split, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    figures = evaluate(make_model(), processor, [*split, {"video": str(broken), "captions": ["a"]}], progress=False)
    assert (figures["num_videos"], figures["num_videos_in_split"], figures["num_queries"]) == (5, 6, 10)
    assert "broken.mp4" in figures["failures"][0]
    with pytest.raises(ValueError, match="None of the 1 videos can be decoded"):
        evaluate(make_model(), processor, [{"video": str(broken), "captions": ["a"]}], progress=False)
