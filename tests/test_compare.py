"""Test `pig evaluate` with saved ranks, embeddings and QB-Norm, and `pig compare` of what it wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_pig import PigForRetrieval
from modeling_pig.evaluation.compare import paired_differences, read_results, summarise
from modeling_pig.evaluation.metrics import bootstrap_intervals, ranks_of_targets, retrieval_metrics

from .cli_helpers import assert_one_line_error
from .test_training import tiny_run


METRICS = {"R@1": 20.0, "R@5": 60.0, "R@10": 80.0, "R@50": 100.0, "MdR": 4.0, "MnR": 6.0}


def write_result(file: Path, ranks: np.ndarray, videos_of_query: list[str], split: str = "test", **fields) -> Path:
    """Write a result in which each query has the given rank; queries are numbered per video."""
    videos = sorted(set(videos_of_query))
    record = {
        "benchmark": "shapes",
        "options": {},
        "split": split,
        "protocol": "",
        "text_to_video": retrieval_metrics(ranks),
        "video_to_text": METRICS,
        "num_queries": len(ranks),
        "num_videos": len(videos),
        "num_videos_in_split": len(videos),
        "ties": "expected",
        "failures": [],
        "device": "cpu",
        "dtype": "float32",
        "versions": {},
        "date": "2026-01-01",
        "recipe": {"data": {"max_text_tokens": 50}},
        "ranks": {
            "queries": [f"caption {index}" for index in range(len(ranks))],
            "video_of_query": videos_of_query,
            "videos": videos,
            "text_to_video": ranks.tolist(),
            "video_to_text": [1.0] * len(videos),
        },
        **fields,
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record))
    return file


@pytest.fixture
def owners() -> list[str]:
    return [f"video{index // 4:02d}" for index in range(120)]  # 30 videos with 4 captions each


def test_difference_from_a_perfect_result_has_the_interval_of_the_other(tmp_path, owners):
    """A constant baseline adds no variance: the paired interval is that of one result, resampled by video."""
    ranks = np.repeat(np.random.default_rng(0).integers(1, 13, size=30), 4).astype(float)
    perfect = write_result(tmp_path / "perfect.json", np.ones(120), owners)
    order = np.random.default_rng(1).permutation(120)  # another order of the queries changes nothing
    shuffled = json.loads(write_result(tmp_path / "other.json", ranks, owners).read_text())
    for name in ("queries", "video_of_query", "text_to_video"):
        shuffled["ranks"][name] = [shuffled["ranks"][name][index] for index in order]
    (tmp_path / "other.json").write_text(json.dumps(shuffled))
    (first,), (second,) = read_results(perfect), read_results(tmp_path / "other.json")
    found = paired_differences(first, second, num_samples=4000)["text_to_video"]
    alone = bootstrap_intervals(ranks, np.repeat(np.arange(30), 4), num_samples=4000, seed=1)
    for metric in ("R@1", "R@5", "R@10"):
        assert found[metric]["difference"] == pytest.approx(retrieval_metrics(ranks)[metric] - 100)
        assert np.add(found[metric]["interval_95"], 100) == pytest.approx(alone[metric], abs=3.4)
    same = paired_differences(second, second, num_samples=100)["text_to_video"]["R@1"]
    assert same["difference"] == 0 and same["interval_95"] == [0, 0]


def test_pairing_removes_the_variance_that_results_share(tmp_path, owners):
    """The results differ in one video only: the interval covers this video, not the choice of all."""
    ranks = np.where(np.arange(120) % 8 < 4, 1.0, 20.0)
    better = np.where(np.arange(120) < 8, 1.0, ranks)
    files = [write_result(tmp_path / f"{name}.json", r, owners) for name, r in (("a", ranks), ("b", better))]
    (first,), (second,) = map(read_results, files)
    found = paired_differences(first, second, num_samples=4000)["text_to_video"]["R@1"]
    assert found["difference"] == pytest.approx(100 / 30)
    assert found["interval_95"] == pytest.approx([0, 10], abs=0.1)  # the video is drawn 0 to 3 times


def test_seeds_are_summarised_by_mean_and_spread(tmp_path, owners, pig):
    for name, shares in {"ours": (20, 30, 40), "theirs": (10, 10, 10)}.items():
        for seed, share in enumerate(shares):
            ranks = np.where(np.arange(120) < share * 1.2, 1.0, 20.0)
            write_result(tmp_path / name / f"{seed}.json", ranks, owners, selected_on="shapes/test")
    found = summarise(read_results(tmp_path / "ours"))["text_to_video"]["R@1"]
    assert (found["mean"], found["std"]) == pytest.approx((30, 10))
    half = 4.303 * 10 / 3**0.5
    assert found["interval_95"] == pytest.approx([30 - half, 30 + half])
    status, output, error = pig("compare", "ours", "theirs", "--output", "table.json")
    assert status == 0, error
    assert "30.0 ± 10.0" in output and "10.0 ± 0.0" in output
    assert output.count("selected on the test split of shapes") == 6
    assert json.loads((tmp_path / "table.json").read_text())["summaries"]["ours"]["text_to_video"]["R@1"] == found


def test_results_that_cannot_be_compared_are_refused(tmp_path, owners, pig):
    first = write_result(tmp_path / "a.json", np.ones(120), owners)
    other = write_result(tmp_path / "b.json", np.ones(120), [*owners[:-1], "video00"])
    assert_one_line_error(pig("compare", first, other), "different queries or videos", "'video00 caption 119 0'")
    validation = write_result(tmp_path / "c.json", np.ones(120), owners, split="validation")
    assert_one_line_error(pig("compare", first, validation), "c.json has split validation, and", "has test")
    plain = tmp_path / "d.json"
    plain.write_text(json.dumps({**json.loads(first.read_text()), "ranks": None}))
    assert_one_line_error(pig("compare", first, plain), "d.json has no ranks per query", "--save-ranks FILE.json")
    (tmp_path / "e.json").write_text("{}")
    assert_one_line_error(
        pig("compare", first, tmp_path / "e.json"), "e.json is no result of pig evaluate", "required"
    )
    assert_one_line_error(pig("compare", first), "is one result: give a second result")
    assert_one_line_error(pig("compare", "nothing"), "There is no file or folder nothing")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(pig("compare", "empty", first), "empty holds no results")


def test_evaluate_saves_ranks_and_embeddings_that_compare_reads(
    videos, make_config, processor, model_folder, tmp_path, pig
):
    single_tower = tmp_path / "single_tower"
    PigForRetrieval(make_config(framework="single_tower")).save_pretrained(single_tower)
    processor.save_pretrained(single_tower)
    overrides = tiny_run(videos)[:3]
    (tmp_path / "bank.txt").write_text("a red circle moves left\n\na blue star spins\n")
    for name, model, more in (
        ("hybrid", model_folder, ["--qb-norm"]),
        ("single", single_tower, ["--querybank", "bank.txt"]),
    ):
        command = ["evaluate", "--model", model, "--recipe", "moving_shapes", "--bootstrap", 0, *more]
        command += ["--save-ranks", f"{name}.json", "--save-embeddings", name, *overrides]
        status, output, error = pig(*command)
        assert status == 0 and "with QB-Norm" in output and f"embeddings: {name}" in output, error

    record = json.loads((tmp_path / "hybrid.json").read_text())
    ids = json.loads((tmp_path / "hybrid/ids.json").read_text())
    queries, gallery, scores = (np.load(tmp_path / f"hybrid/{name}.npy") for name in ("queries", "videos", "scores"))
    assert np.allclose(queries @ gallery.T, scores, atol=1e-6)
    assert scores.shape == (24, 6) == (len(ids["queries"]), len(ids["videos"]))
    owners = torch.tensor([ids["videos"].index(video) for video in ids["video_of_query"]])
    ranks = ranks_of_targets(torch.from_numpy(scores), owners)
    assert record["ranks"]["text_to_video"] == ranks.tolist()
    assert record["text_to_video"] == retrieval_metrics(ranks)
    assert {name: record["ranks"][name] for name in ids} == ids
    assert record["text_to_video_qb_norm"] == retrieval_metrics(np.array(record["ranks"]["text_to_video_qb_norm"]))
    assert (record["num_querybank"], record["querybank"]) == (64, "training captions")
    assert sorted(file.name for file in (tmp_path / "single").iterdir()) == ["ids.json", "scores.npy"]
    assert json.loads((tmp_path / "single.json").read_text())["num_querybank"] == 2

    status, output, error = pig("compare", "hybrid.json", "single.json")
    assert status == 0, error
    for row in ("text-to-video R@1", "video-to-text R@10", "text-to-video-qb-norm R@5", "paired bootstrap"):
        assert row in output


def test_invalid_outputs_of_evaluate_are_refused(tmp_path, model_folder, pig, monkeypatch):
    command = ("evaluate", "--model", model_folder, "--recipe", "moving_shapes")
    assert_one_line_error(pig(*command, "--save-ranks", "ranks.csv"), "--save-ranks is ranks.csv: expected a file")
    assert_one_line_error(pig(*command, "--save-ranks", "a.json", "--output", "a.json"), "are both a.json")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    assert_one_line_error(pig(*command, "--save-embeddings", "mine"), "mine exists and holds other files")
    (tmp_path / "bank.txt").write_text("\n")
    assert_one_line_error(pig(*command, "--querybank", "bank.txt"), "bank.txt")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_one_line_error(pig(*command), "2 processes were launched, and pig evaluate runs in one")
    monkeypatch.setenv("RANK", "1")
    assert pig(*command) == (1, "", "")
