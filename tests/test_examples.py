"""Every example runs, with the commands of `make demo` on little data: train, evaluate, index, search.

The tests of the benchmarks run at the start of `make bench`.
"""

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml

from modeling_pig import PigForRetrieval
from tests.test_training import ROOT, tiny_run
from tests.warm_python import warm_python


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Return a folder after a run of `examples/train.py`: videos/, run/model."""
    folder = tmp_path_factory.mktemp("demo")
    example(folder, "train.py", "--recipe", "moving_shapes", "--output", "run", *tiny_run("videos"))
    return folder


def python(folder: Path, *arguments) -> str:
    """Run Python in a folder; return standard output."""
    done = warm_python().run(arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(folder: Path, script: str, *arguments) -> str:
    return python(folder, ROOT / "examples" / script, *arguments)


def pig(folder: Path, *arguments) -> str:
    return python(folder, "-m", "modeling_pig.cli", *arguments)


def test_train_evaluate_index_and_search(run_folder):
    output = example(
        run_folder,
        "evaluate.py",
        *("--model", "run/model", "--recipe", "run/recipe.yaml", "--output", "run/test.json"),
        *("--dual-softmax", "--bootstrap", "100"),
    )
    assert "24 queries, 6 of 6 videos" in output and "text-to-video" in output and "video-to-text" in output
    assert "with dual softmax" in output and "100.0 [100.0, 100.0]" in output
    assert (run_folder / "run/test.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((run_folder / "run/test.json").read_text())
    assert figures["num_queries"] == 24 and 0 <= figures["text_to_video"]["R@1"] <= 100
    assert figures["text_to_video"]["R@10"] == 100  # there are six videos
    assert figures["num_bootstrap"] == 100 and "text_to_video_dual_softmax" in figures
    assert figures["recipe"] == yaml.safe_load((run_folder / "run/recipe.yaml").read_text())

    assert "indexed 6 new, 0 changed, 0 unchanged, 0 failed" in pig(
        run_folder, "index", "videos/test", "--model", "run/model", "--index", "run/videos.lance"
    )
    assert len(pig(run_folder, "search", "a red circle moves left", "--index", "run/videos.lance").splitlines()) == 7

    output = example(
        run_folder,
        "search_videos.py",
        *("--index", "run/videos.lance", "--recipe", "run/recipe.yaml", "--output", "run/answers.png", "-k", "3"),
    )
    assert output.count("“") == 3 and output.count("rank") == 3
    assert output.count("videos/test/test_000") == 9
    assert "picture: run/answers.png" in output
    with PIL.Image.open(run_folder / "run/answers.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 24)) > 1000

    names = ("--index", "run/videos.lance", "--recipe", "run/recipe.yaml", "--json", "run/names.json")
    assert "6 videos and as many queries of each kind" in example(run_folder, "search_by_name.py", *names)
    rows = json.loads((run_folder / "run/names.json").read_text())["recall"]
    assert all(row["words R@1"] == row["both R@1"] == 100 for row in rows if row["query"] == "name")
    [unheld] = [row for row in rows if (row["query"], row["column"]) == ("caption", "who")]
    assert unheld["words R@10"] == 0 and unheld["both R@1"] == unheld["vectors R@1"]

    queries = ["a red circle moves left", "[red] {x} $y_"]
    output = example(run_folder, "search_videos.py", "--index", "run/videos.lance", "--output", "own.png", *queries)
    assert all(f"“{query}”" in output for query in queries)
    assert (run_folder / "own.png").stat().st_size > 10_000


def test_copies_and_judgements_are_measured(run_folder):
    settings = ("--model", "run/model", "--json", "figures.json")
    output = example(run_folder, "measure_duplicates.py", *settings, "--videos", "10")
    assert "10 videos, model run/model; the default limit is 0.98" in output
    pairs = {row["pairs"]: row for row in json.loads((run_folder / "figures.json").read_text())["pairs"]}
    assert pairs["webm, VP9"]["number"] == 10 and pairs["film: a whole scene cut off at the end"]["number"] == 1
    assert pairs["same but for one attribute"]["number"] == 3 and pairs["other shapes"]["number"] == 42
    assert {row["error"] for row in pairs.values()} == {"missed", "grouped"}

    sizes = ("--videos", "24", "--sizes", "20", "--repeats", "1", "--queries", "3")
    output = example(run_folder, "measure_judgements.py", *settings, *sizes)
    assert "limits: judgement 0.000" in output
    rows = {row["sentence"]: row for row in json.loads((run_folder / "figures.json").read_text())["shares"]}
    assert rows["everyday"]["error"] == "missed" and rows["colour and form"]["error"] == "false alarms"
    assert all(0 <= row["judgement, 20"] <= 100 for row in rows.values()) and len(rows) == 7


def test_quickstart_ranks_queries(run_folder, shape_videos):
    output = example(run_folder, "quickstart.py", "--model", "run/model", shape_videos[0], "a red circle", "a star")
    percentages = [float(line.split("%")[0]) for line in output.splitlines()]
    assert len(percentages) == 2 and percentages[0] >= percentages[1]
    assert sum(percentages) == pytest.approx(100, abs=0.2)


@pytest.mark.bench
def test_benchmark_of_the_model(tmp_path):
    settings = ["--sizes", "b32", "--batches", "1", "--frames", "1", "--repeats", "1"]
    output = example(
        tmp_path, "benchmark.py", "model", *settings, "--leave-out", "memory", "switches", "--json", "figures.json"
    )
    assert "ours beside CLIP" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["model"] for row in figures["video"]] == ["hybrid", "two_tower", "CLIP on frames"]
    assert all(row["ratio"] > 0 for row in figures["video"] + figures["text"])
    gflops = {row["model"]: row["GFLOPs"] for row in figures["video"]}
    assert gflops["two_tower"] < gflops["hybrid"] and 8 < gflops["CLIP on frames"] < 9  # one frame through ViT-B/32


@pytest.mark.bench
def test_benchmark_of_ranking(tmp_path):
    output = example(tmp_path, "benchmark.py", "ranking", "--shape", "1200", "60", "32", "--json", "figures.json")
    assert "1,200 texts x 60 videos" in output
    rows = json.loads((tmp_path / "figures.json").read_text())["ranking"]
    assert [(row["ranks"], row["dual softmax"]) for row in rows] == [
        (way, dual) for dual in ("no", "yes") for way in ("in blocks", "sorting")
    ]
    assert all(row["ranks that differ"] == 0 and 2 < row["R@1"] < 98 for row in rows)
    assert [row["of"] for row in rows] == [1260, 1260, 2520, 2520]

    example(tmp_path, "benchmark_page.py", "figures.json", "--output", "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "`python examples/benchmark.py ranking --shape 1200 60 32 --json figures.json`, 20" in page
    heads, ends, *lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert heads == list(rows[0]) and ends[:3] == ["---", "---", "---:"]
    assert [line[:2] + [line[8]] for line in lines] == [
        [row["ranks"], row["dual softmax"], f"{row['of']:,}"] for row in rows
    ]


def test_the_benchmark_page_refuses_other_files(tmp_path):
    (tmp_path / "figures.json").write_text("{}")
    ended = warm_python().run(
        [ROOT / "examples/benchmark_page.py", "figures.json", "--output", "page.md"], cwd=tmp_path
    )
    assert ended.returncode == 1 and ended.stderr.startswith("error: no figures of examples/benchmark.py")
    assert not (tmp_path / "page.md").exists()


@pytest.mark.bench
def test_benchmark_of_search(tmp_path):
    output = example(tmp_path, "benchmark.py", "search", "--quick", "--threads", "1", "--json", "figures.json")
    assert "1,000 videos are searched by {'method': 'exact'}" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["search"] for row in figures["search"]][:2] == ["ours", "torch"]
    assert all(row["recall@10"] >= 0.99 for row in figures["search"][:2])
    assert {row["videos"] for row in figures["bars"]} == {1000} and all(row["value"] for row in figures["bars"])


@pytest.mark.bench
def test_benchmark_of_reranking(tmp_path):
    example(tmp_path, "benchmark.py", "rerank", "--quick", "--threads", "1", "--json", "figures.json")
    plain, again = json.loads((tmp_path / "figures.json").read_text())["re-ranking"]
    assert (plain["ranked again"], again["ranked again"]) == (0, 20) and again["of its time"] > 0
    assert again["bytes per video"] > plain["bytes per video"] + 2 * 16 * 512


@pytest.mark.bench
def test_benchmark_of_maintenance(tmp_path):
    example(tmp_path, "benchmark.py", "maintain", "--sizes", "300", "--dim", "8", "--json", "figures.json")
    rows = json.loads((tmp_path / "figures.json").read_text())["maintain"]
    assert [row["what"] for row in rows][-2:] == ["export", "import"] and all(row["s"] > 0 for row in rows)


@pytest.mark.bench
def test_benchmark_of_the_start(tmp_path):
    # In an interpreter that starts as a user's does: the programs of `python` share one that has started.
    command = [sys.executable, ROOT / "examples/benchmark.py", "start", "--quick", "--threads", "1"]
    subprocess.run([*command, "--json", "figures.json"], cwd=tmp_path, check=True, capture_output=True)
    rows = json.loads((tmp_path / "figures.json").read_text())["first answer"]
    assert [row["search"] for row in rows] == ["ours", "transformers"]
    assert all(0 < row["seconds"] <= row["slowest"] and row["peak memory MB"] > 10 for row in rows)


@pytest.mark.bench
def test_benchmark_of_the_app(tmp_path):
    example(tmp_path, "benchmark.py", "app", "--quick", "--threads", "1", "--json", "figures.json")
    rows = json.loads((tmp_path / "figures.json").read_text())["load"]
    assert [row["searches run"] for row in rows] == ["in-process", "over HTTP"] * 2
    assert all(row["errors"] == 0 and row["searches"] > 1 and row["p99 ms"] >= row["p50 ms"] > 0 for row in rows)


@pytest.mark.bench
def test_benchmark_of_indexing(tmp_path):
    example(
        tmp_path, "benchmark.py", "index", "--quick", "--threads", "1", "--device", "cpu", "--json", "figures.json"
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    speed = {row["what"]: row["videos/s"] for row in figures["speed"]}
    assert speed["floor"] < min(speed["decoding"], speed["model"])  # decoding, then the model
    assert [row["videos"] for row in figures["steadiness"]] == [200] and figures["steadiness"][0]["end / start"] > 0


@pytest.mark.bench
def test_benchmark_of_training(tmp_path):
    output = example(tmp_path, "benchmark.py", "train", "--quick", "--threads", "1", "--json", "figures.json")
    assert "beside CLIP on the same frames" in output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["step"] for row in figures["step"]] == ["ours", "naive", "CLIP on frames"]
    assert [row["step"] for row in figures["gradient cache"]] == ["ours", "chunks of 1"]
    assert [row["batch"] for row in figures["memory by batch"]] == [4, 8]
    assert [row["processes"] for row in figures["scaling"]] == [1, 2]
    held = [(row["ratio"], row) for row in figures["step"][:1] + figures["gradient cache"][1:]]
    assert all((ratio <= float(row["bar"].split()[-1])) == (row["met"] == "yes") for ratio, row in held)
    held = [(row[f"share of {row['held to']}"], row) for row in figures["data"] if row["held to"] != "-"]
    assert [row["way"] for _, row in held] == ["decode_video", "loader, 0 workers", "loader, 1 worker"]
    assert all((share >= float(row["bar"].split()[-1])) == (row["met"] == "yes") for share, row in held)


def test_the_naive_implementation_computes_the_same_loss(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    from benchmarks.train import make_batch, make_config, make_naive

    config = make_config("tiny", 3)
    batch = make_batch(config, 3, 3)
    naive, loss = make_naive(config, batch)
    ours = PigForRetrieval(config).eval()
    ours.load_state_dict(naive.eval().state_dict())
    torch.testing.assert_close(loss(), ours(**batch, return_loss=True).loss)


def test_moments(run_folder):
    arguments = ("--films", "1", "--shots", "3", "--seeds", "0", "1", "--json", "moments.json")
    output = example(run_folder, "moments.py", "--model", "run/model", *arguments)
    rows = [line for line in output.splitlines() if " ± " in line]
    assert [row.split("  ")[0] for row in rows] == [
        name + refined for name in ("windows of 30 s", "windows of 5 s", "shots") for refined in ("", ", refined")
    ]
    figures = json.loads((run_folder / "moments.json").read_text())["figures"]
    assert len(figures) == 2 and all(ways["shots"]["film"] == 100 for ways in figures)  # there is one film
    assert all(ways["shots"] == ways["shots, refined"] for ways in figures)


def test_errors_are_one_line(tmp_path):
    """The other scripts run commands of `pig`, whose errors have tests."""
    done = warm_python().run([ROOT / "examples/search_videos.py", "--index", "missing.lance", "a"], cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: ") and "missing" in done.stderr
