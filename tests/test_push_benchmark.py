"""A benchmark as a dataset folder: what `load_dataset` reads back, and what the card says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Video, load_dataset
from huggingface_hub import DatasetCard

from hub_scripts import push_benchmark
from hub_scripts.push_benchmark import escape, write_benchmark
from modeling_pig import __version__
from modeling_pig.benchmarks import load_benchmark

from .benchmark_stand_ins import DIDEMO, MSVD, WRITERS, write_didemo, write_msvd


SCRIPT = Path(push_benchmark.__file__)
FURTHER = {"msrvtt_1k": {"validation": 2}}  # options of a stand-in


@pytest.fixture
def msvd(tmp_path) -> dict[str, Path]:
    write_msvd(tmp_path / "msvd")
    return {"annotations": tmp_path / "msvd/annotations", "videos": tmp_path / "msvd/videos"}


def read_both_ways(folder: Path, tmp_path: Path) -> list:
    """The folder as `load_dataset` reads it by its name, and by its parquet files."""
    files = {
        split: sorted(map(str, folder.glob(f"data/{split}-*.parquet"))) for split in ("train", "validation", "test")
    }
    return [
        load_dataset(str(folder), cache_dir=tmp_path / "cache"),
        load_dataset("parquet", data_files=files, cache_dir=tmp_path / "cache"),
    ]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_it_reads_back_equal(tmp_path, name):
    WRITERS[name](tmp_path / name)
    files = {"annotations": tmp_path / name / "annotations", "videos": tmp_path / name / "videos"}
    summary = write_benchmark(name, output=tmp_path / "out", **files, **FURTHER.get(name, {}))
    assert summary.startswith(f"{name}: train ") and summary.endswith(f"{tmp_path}/out")
    original = load_benchmark(name, cache_dir=tmp_path / "other", **files, **FURTHER.get(name, {}))
    for back in read_both_ways(tmp_path / "out", tmp_path):
        assert list(back) == list(original)
        for split, rows in original.items():
            assert back[split].features == rows.features
            assert [{**row, "video": str(files["videos"] / row["video"])} for row in back[split]] == list(rows)
            assert not any(os.path.isabs(path) for path in back[split]["video"])


def test_the_bytes_of_the_videos(msvd, tmp_path, monkeypatch):
    (msvd["videos"] / f"{MSVD['train'][1]}.avi").unlink()
    (msvd["videos"] / f"{MSVD['test'][0]}.avi").write_bytes(b"junk")
    size = max(path.stat().st_size for path in msvd["videos"].iterdir())
    monkeypatch.setattr(push_benchmark, "SHARD_BYTES", size)
    summary = write_benchmark("msvd", output=tmp_path / "out", with_videos=True, **msvd)
    assert summary.startswith("msvd: train 4, validation 2, test 3 videos, 2 of them missing, ")
    assert sorted(path.name for path in (tmp_path / "out/data").glob("train-*")) == [
        f"train-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    for back in read_both_ways(tmp_path / "out", tmp_path):
        for split, ids in MSVD.items():
            assert back[split].features["video"] == Video(decode=False)
            assert back[split]["video_id"][:] == ids
            for row in back[split]:
                if row["video_id"] in (MSVD["train"][1], MSVD["test"][0]):
                    assert row["video"] is None
                else:
                    path = msvd["videos"] / f"{row['video_id']}.avi"
                    assert row["video"] == {"path": path.name, "bytes": path.read_bytes()}


def test_the_card(msvd, tmp_path):
    (msvd["videos"] / f"{MSVD['test'][0]}.avi").unlink()
    (msvd["annotations"] / "my_test.txt").write_text("\n".join(MSVD["test"]))
    (msvd["annotations"] / "test_list.txt").unlink()
    lists = {"test": str(msvd["annotations"] / "my_test.txt")}
    write_benchmark("msvd", output=tmp_path / "out", license="cc-by-4.0", lists=lists, **msvd)
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.language == "en"
    assert [column["name"] for column in card.data.dataset_info["features"]] == [
        "video_id",
        "video",
        "captions",
        "start",
        "end",
    ]
    for part in (
        "| train | 4 | 12 | 0 |",
        "| validation | 2 | 6 | 0 |",
        "| test | 3 | 9 | 1 |",
        "MSVD: ",
        "chosen by",
        f"modeling\\_pig {__version__}",
        "captions\\_msvd.json",
        f"Missing in test, or not to be opened, 1 videos: {escape(MSVD['test'][0])}",
        "Who publishes it must hold the rights to do so.",
    ):
        assert part in card.text
    protocol = load_benchmark("msvd", **msvd, lists=lists)["test"].info.description.splitlines()[0]
    assert escape(protocol) in card.text
    assert str(tmp_path) not in card.content
    assert not any(path.name.startswith(".out") for path in tmp_path.iterdir())


def test_markup_in_captions_and_names_is_escaped(msvd, tmp_path):
    path = msvd["annotations"] / "captions_msvd.json"
    captions = json.loads(path.read_text())
    nasty = "<script>alert(1)</script> [a](http://b) | *c* `d` &lt; ![e](f)"
    captions[MSVD["train"][0]][0] = nasty
    path.rename(path.with_name("<b>caps*.json"))
    path.with_name("<b>caps*.json").write_text(json.dumps(captions))
    write_benchmark("msvd", output=tmp_path / "out", **msvd)
    card = DatasetCard.load(tmp_path / "out/README.md").text
    assert "<script>" not in card and "<b>" not in card
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; \\[a\\](http\\://b) \\| \\*c\\* \\`d\\` &amp;lt; \\!\\[e\\](f)" in card
    )
    (back, _) = read_both_ways(tmp_path / "out", tmp_path)
    assert back["train"][0]["captions"][0] == nasty


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words, 3.5 s - x-y (z): it's", "plain words, 3.5 s - x-y (z): it's"),
        ("- a\n\n# b", "\\- a \\# b"),
        ("www.a.b", "www\\.a.b"),
    ],
)
def test_escape(text, expected):
    assert escape(text) == expected


def test_frames_cannot_be_embedded(tmp_path):
    write_didemo(tmp_path / "didemo")
    files = {"annotations": tmp_path / "didemo/annotations", "videos": tmp_path / "didemo/videos"}
    with pytest.raises(ValueError, match=f"{DIDEMO['test'][0]} is a folder of frames"):
        write_benchmark("didemo", output=tmp_path / "out", with_videos=True, **files)
    assert [path.name for path in tmp_path.iterdir()] == ["didemo"]


def test_the_command(tmp_path, monkeypatch):
    arguments = ["moving_shapes", "--videos", tmp_path / "videos", "--output", tmp_path / "out", "--with-videos"]
    arguments += ["--option", "train=2", "--option", "validation=1", "--option", "test=1"]
    command = [str(SCRIPT), *map(str, arguments)]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("moving_shapes: train 2, validation 1, test 1 videos, 0 of them missing, ")
    back = read_both_ways(tmp_path / "out", tmp_path)[0]
    assert back["test"][0]["video"]["path"] == "test/test_0000.mp4"
    assert back["test"][0]["video"]["bytes"] == (tmp_path / "videos/test/test_0000.mp4").read_bytes()

    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="error: The output .*/out is not an empty folder"):
        push_benchmark.main()


@pytest.mark.parametrize("place", ["full", "file"])
def test_an_output_with_other_content(msvd, tmp_path, place):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        write_benchmark("msvd", output=tmp_path / place, **msvd)
    assert (tmp_path / "full/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
