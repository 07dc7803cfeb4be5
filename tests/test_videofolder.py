"""Test one's own videos with captions: layouts, splits, leaks, invalid tables, and the way from a CSV to a search."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_pig import PigDataCollator, PigForRetrieval
from modeling_pig.benchmarks import load_benchmark
from modeling_pig.benchmarks.moving_shapes import make_captions, make_scene
from modeling_pig.benchmarks.shapes_drawing import write_video as draw_video
from modeling_pig.publishing.model_card import make_model_card
from modeling_pig.publishing.run_records import read_run
from modeling_pig.training.run_folder import RunFolder

from .cli_helpers import assert_one_line_error
from .video_files import numbered_frames, write_video


GOLDEN = Path(__file__).parent / "golden"
NUM_VIDEOS = 10


@pytest.fixture(autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Return a folder of ten different videos, `clip_00.mp4` and so on."""
    folder = tmp_path_factory.mktemp("own")
    frames = numbered_frames(NUM_VIDEOS + 4)
    for number in range(NUM_VIDEOS):
        write_video(folder / f"clip_{number:02}.mp4", frames[number : number + 4])
    return folder


@pytest.fixture
def own(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "own"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.mp4"))


def write_csv(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def captioned(own: Path, **values) -> list[dict]:
    """Return rows of all videos, two captions each."""
    return [
        {"file_name": name, "caption": f"{which} caption of {name}", **values}
        for name in names(own)
        for which in ("a", "another")
    ]


def ids(splits: datasets.DatasetDict) -> dict[str, list[str]]:
    return {split: list(rows["video_id"]) for split, rows in splits.items()}


# layouts


def test_split_folders_with_metadata_files(own):
    for number, name in enumerate(names(own)):
        folder = own / ("train", "val", "test")[min(number // 4, 2)]
        folder.mkdir(exist_ok=True)
        (own / name).rename(folder / name)
    for folder in own.iterdir():
        rows = [{"file_name": name, "text": [f"one of {name}", f"two of {name}"]} for name in names(folder)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_benchmark("videofolder", videos=own)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 4, "test": 2}
    row = splits["validation"][0]
    assert row["video_id"] == "val/clip_04.mp4" and row["video"] == str(own / "val/clip_04.mp4")
    assert row["captions"] == ["one of clip_04.mp4", "two of clip_04.mp4"]
    assert "names of the folders" in splits["test"].info.description


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_one_table_anywhere_with_splits_and_segments(own, tmp_path, suffix):
    rows = [
        {"file_name": name, "caption": f"part {part} of {name}", "start": 0.08 * part, "end": 0.08 * (part + 1)}
        for name in names(own)
        for part in (0, 1)
    ]
    for row in rows:
        row["split"] = "test" if row["file_name"] == "clip_03.mp4" else "train"
    table = tmp_path / f"captions.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(table)
    elif suffix == "json":
        table.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    else:
        write_csv(table, rows)
        if suffix == "tsv":
            table.write_text(table.read_text().replace(",", "\t"))
    splits = load_benchmark("videofolder", videos=own, annotations=table, title="clips")
    assert set(splits) == {"train", "test"} and len(splits["train"]) == 18
    assert splits["test"]["video_id"] == ["clip_03.mp4#t=0,0.08", "clip_03.mp4#t=0.08,0.16"]
    assert splits["test"][1]["start"] == pytest.approx(0.08) and splits["test"][1]["end"] == pytest.approx(0.16)
    assert splits["test"].info.description.startswith("clips: every caption of a test video is a query.")


def test_mapping_of_captions_by_path(own, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps({name: [f"of {name}"] for name in names(own)}))
    splits = load_benchmark("videofolder", videos=own, annotations=tmp_path / "captions.json", test=3)
    assert sorted(sum(ids(splits).values(), [])) == names(own) and len(splits["test"]) == 3


@pytest.mark.parametrize("with_bytes", [False, True])
def test_saved_data_set(own, tmp_path, with_bytes):
    """A data set of `datasets` holds the videos as bytes or as paths, and gives the splits."""

    def rows(part: list[str]) -> datasets.Dataset:
        videos = [
            {"path": name, "bytes": (own / name).read_bytes()} if with_bytes else {"path": str(own / name)}
            for name in part
        ]
        table = datasets.Dataset.from_dict({"clip": videos, "caption": [f"of {name}" for name in part]})
        return table.cast_column("clip", datasets.Video(decode=False))

    parts = {"train": names(own)[:6], "val": names(own)[6:8], "test": names(own)[8:]}
    datasets.DatasetDict({split: rows(part) for split, part in parts.items()}).save_to_disk(tmp_path / "saved")
    for _ in range(2):  # the second time from the cache
        splits = load_benchmark("videofolder", videos=tmp_path / "saved", cache_dir=tmp_path / "cache")
        assert {split: len(found) for split, found in splits.items()} == {"train": 6, "validation": 2, "test": 2}
        for split, part in zip(splits, parts.values(), strict=True):
            for row, name in zip(splits[split], part, strict=True):
                assert row["captions"] == [f"of {name}"]
                assert Path(row["video"]).read_bytes() == (own / name).read_bytes()


def test_data_set_without_videos_is_refused(own, tmp_path):
    datasets.Dataset.from_dict({"caption": ["a"], "label": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="one column of videos, and has none; its columns are caption, label"):
        load_benchmark("videofolder", videos=tmp_path / "saved", cache_dir=tmp_path / "cache")


# splits


def test_splits_are_drawn_by_video(own):
    write_csv(own / "metadata.csv", captioned(own))
    first = ids(load_benchmark("videofolder", videos=own, validation=2, test=0.3))
    assert {split: len(found) for split, found in first.items()} == {"train": 5, "validation": 2, "test": 3}
    assert sorted(sum(first.values(), [])) == names(own)
    assert ids(load_benchmark("videofolder", videos=own, validation=2, test=0.3, seed=1)) != first
    assert set(load_benchmark("videofolder", videos=own, validation=0)) == {"train", "test"}
    with pytest.raises(ValueError, match="leave none of 10 for training"):
        load_benchmark("videofolder", videos=own, validation=5, test=5)


def test_drawn_splits_keep_recordings_and_copies_together(own):
    shutil.copy(own / "clip_00.mp4", own / "renamed.mp4")
    rows = [
        {**row, "group": f"day {int(row['file_name'][5:7]) // 2}"}
        for row in captioned(own)
        if "clip" in row["file_name"]
    ]
    rows += [{"file_name": "renamed.mp4", "caption": "a copy of the first", "group": "day 9"}]
    write_csv(own / "metadata.csv", rows)
    for seed in range(5):
        splits = ids(load_benchmark("videofolder", videos=own, validation=2, test=3, seed=seed))
        split_of = {video: split for split, found in splits.items() for video in found}
        for number in range(0, NUM_VIDEOS, 2):
            assert split_of[f"clip_{number:02}.mp4"] == split_of[f"clip_{number + 1:02}.mp4"]
        assert split_of["renamed.mp4"] == split_of["clip_00.mp4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "renamed.mp4", "caption": "x", "split": "test", "group": ""}, "are copies of one file"),
        ({"file_name": "clip_05.mp4", "caption": "x", "split": "test", "group": "day"}, "come from one recording"),
        (
            {"file_name": "clip_00.mp4", "caption": "x", "split": "test", "group": "day"},
            "is in the split test, and in train",
        ),
    ],
)
def test_video_in_two_splits_is_refused(own, change, message):
    shutil.copy(own / "clip_00.mp4", own / "renamed.mp4")
    rows = [{"file_name": "clip_00.mp4", "caption": "a", "split": "train", "group": "day"}, change]
    write_csv(own / "metadata.csv", rows)
    with pytest.raises(ValueError, match=message):
        load_benchmark("videofolder", videos=own)


def test_missing_and_broken_videos_are_reported(own):
    rows = captioned(own)
    (own / "clip_02.mp4").unlink()
    (own / "clip_04.mp4").write_bytes(b"no video")
    write_csv(own / "metadata.csv", rows)
    splits = load_benchmark("videofolder", videos=own, test=2)
    report = (own / ".datasets/videofolder-videos.csv").read_text()
    assert "clip_02.mp4,no file" in report and "clip_04.mp4" in report
    assert [row["video_id"] for rows in splits.values() for row in rows if not row["video"]] == [
        "clip_02.mp4",
        "clip_04.mp4",
    ]
    with pytest.raises(ValueError, match="2 videos are missing or do not open"):
        load_benchmark("videofolder", videos=own, test=2, strict=True)


# invalid tables


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file_name,caption\nclip_00.mp4,\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        ("file_name,caption\nclip_00.mp4,a\n".encode("utf-16"), "UTF-16, save it as UTF-8"),
        (b"file_name,caption\nclip_00.mp4,a,b\n", "line 2: 3 values for 2 columns"),
        (
            b"file_name,caption,text\nclip_00.mp4,a,b\n",
            "columns caption and text: choose one by the option caption_column",
        ),
        (
            b"file,title\nclip_00.mp4,a\n",
            "no column caption or captions or text or sentence: its columns are file, title",
        ),
        (b"file_name,caption\n,a\n", "line 2: the column file_name is ''"),
        (b"file_name,caption\nclip_00.mp4, \n", "1 videos have no caption, such as 'clip_00.mp4'"),
        (b"file_name,caption,split\nclip_00.mp4,a,holdout\n", "the column split is 'holdout'; expected train"),
        (b"file_name,caption,split\nclip_00.mp4,a,train\nclip_01.mp4,a,\n", "'clip_01.mp4' .* has no split"),
        (b"file_name,caption,start\nclip_00.mp4,a,soon\n", "the column start is 'soon'; expected seconds"),
        (b"file_name,caption,start,end\nclip_00.mp4,a,3,2\n", "the segment ends at 2 s and starts at 3 s"),
        (b"file_name,caption\nnone.mp4,a\nno.mp4,a\nn.mp4,a\n", "none of 3 videos was found and opens"),
        (b"file_name,caption\n", "holds no rows"),
        (b"file_name,caption\nclip_00.mp4," + b"a" * 10_000_000 + b"\n", "cells of at most 128 kB"),
    ],
)
def test_invalid_table_is_refused_in_one_line(own, content, message):
    (own / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_benchmark("videofolder", videos=own)
    assert "\n" not in str(error.value)


def test_captions_that_are_no_text(own, tmp_path):
    table = tmp_path / "captions.jsonl"
    table.write_text('{"file_name": "clip_00.mp4", "caption": "a"}\n{"file_name": "clip_01.mp4", "caption": 7}\n')
    with pytest.raises(ValueError, match="captions.jsonl, line 2: the column caption holds 7, a int; expected text"):
        load_benchmark("videofolder", videos=own, annotations=table)
    table.write_text('{"file_name": "clip_00.mp4", "caption": "a"}\n{"file_name": \n')
    with pytest.raises(ValueError, match="captions.jsonl, line 2: broken JSON"):
        load_benchmark("videofolder", videos=own, annotations=table)


def test_empty_and_repeated_captions_are_left_out(own):
    rows = [*captioned(own), {"file_name": "clip_00.mp4", "caption": ""}, captioned(own)[0]]
    rows += [{"file_name": "clip_01.mp4", "caption": f"number {number}"} for number in range(10_000)]
    write_csv(own / "metadata.csv", rows)
    splits = load_benchmark("videofolder", videos=own, splits=["train", "validation", "test"])
    captions = {row["video_id"]: row["captions"] for found in splits.values() for row in found}
    assert len(captions["clip_00.mp4"]) == 2 and len(captions["clip_01.mp4"]) == 10_002
    notes = splits["train"].info.description
    assert "1 empty captions were left out." in notes and "1 captions that repeat" in notes


def test_folder_without_a_table(own):
    with pytest.raises(ValueError, match="has no metadata.csv or metadata.jsonl or metadata.parquet: give the table"):
        load_benchmark("videofolder", videos=own)
    with pytest.raises(ValueError, match="there is no folder 'nowhere'"):
        load_benchmark("videofolder", videos="nowhere")


# commands


@pytest.fixture
def drawn(tmp_path) -> Path:
    """Return a folder of 40 drawn videos with a CSV of their captions."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    rows = []
    for index in range(40):
        draw_video(make_scene("train", index), folder / f"{index:02}.mp4")
        rows += [{"file_name": f"{index:02}.mp4", "caption": text} for text in make_captions("train", index)]
    write_csv(folder / "captions.csv", rows)
    return folder


def overrides(drawn: Path, *more: str) -> list[str]:
    """Return overrides with which the recipe trains a tiny model, from the tiny CLIP of the golden files."""
    return [
        f"data.videos={drawn}",
        f"data.annotations={drawn / 'captions.csv'}",
        "data.options={validation: 6, test: 10, seed: 0, title: shapes of ours}",
        "data.num_workers=0",
        f"model.clip={GOLDEN / 'tiny_clip'}",
        "model.overrides={num_frames: 2}",
        "training.batch_size=8",
        "training.epochs=1",
        *more,
    ]


def test_from_a_csv_to_a_search(pig, drawn):
    """Train, read the gain over zero-shot, evaluate, make the card, index and search: the page docs/own_videos.md."""
    status, printed, error = pig("train", "--recipe", "videofolder", "--output", "run", *overrides(drawn))
    assert status == 0, error
    assert "gain by training, over zero-shot with the start of the run (tiny_clip), same queries:" in printed
    assert "Training" in printed.split("gain by training")[1]
    record = json.loads(Path("run/test.json").read_text())
    zero_shot = json.loads(Path("run/zero_shot_ranks.json").read_text())
    assert record["benchmark"] == zero_shot["benchmark"] == "shapes of ours"
    assert record["num_queries"] == zero_shot["num_queries"] and record["num_videos"] == 10
    assert zero_shot["ranks"]["queries"] == json.loads(Path("run/test_ranks.json").read_text())["ranks"]["queries"]

    model = PigForRetrieval.from_pretrained("run/model")
    card = make_model_card(read_run("run"), model, "org/name")
    assert card.data.datasets == ["shapes of ours"] and "The model was trained on shapes of ours." in card.text
    assert pig("index", drawn, "--model", "run/model", "--index", "own.lance")[0] == 0
    status, printed, _ = pig("search", "a red circle", "--index", "own.lance", "--json")
    assert status == 0 and len(json.loads(printed)["results"]) == 10


def test_refused_run_leaves_nothing(pig, drawn, tmp_path):
    (drawn / "captions.csv").write_text("file_name,caption\n00.mp4,\n")
    result = pig("train", "--recipe", "videofolder", "--output", "runs/mine", *overrides(drawn))
    assert_one_line_error(result, "1 videos have no caption")
    assert not (tmp_path / "runs").exists()


def test_prepare_and_push_benchmark(pig, drawn):
    options = ["--annotations", drawn / "captions.csv", "--option", "test=10"]
    status, printed, error = pig(
        "prepare", "videofolder", "--videos", drawn, "--output", "small", "--short-side", "32", *options
    )
    assert status == 0, error
    splits = load_benchmark("videofolder", videos="small/videos", annotations=drawn / "captions.csv", test=10)
    assert all(row["video"] for rows in splits.values() for row in rows)
    status, printed, error = pig(
        "push", "benchmark", "videofolder", "--videos", drawn, "--output", "set", "--with-videos", *options
    )
    assert status == 0, error
    again = load_benchmark("videofolder", videos="set", cache_dir="cache")
    assert {split: len(rows) for split, rows in again.items()} == {split: len(rows) for split, rows in splits.items()}
    assert np.sum([len(rows) for rows in again.values()]) == 40


def test_transformers_trainer_trains_with_the_collator(drawn, make_model, processor, tmp_path):
    """The loss falls on a few videos; a broken video is left out; evaluation gives a loss."""
    rows = load_benchmark("videofolder", videos=drawn, annotations=drawn / "captions.csv", validation=4, test=4)
    (drawn / "00.mp4").write_bytes(b"broken meanwhile")
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        remove_unused_columns=False,
        per_device_train_batch_size=8,
        max_steps=12,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    model = make_model()
    trainer = Trainer(model, arguments, PigDataCollator(processor), rows["train"], rows["validation"])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "saved"))
    assert PigForRetrieval.from_pretrained(tmp_path / "saved").config.projection_dim == model.config.projection_dim


def test_run_that_is_refused_keeps_the_lock_of_the_run_that_has_it(tmp_path):
    running = RunFolder(tmp_path / "run")
    running.lock()
    code = (
        "import sys; from modeling_pig.training.run_folder import RunFolder\nrefused = RunFolder(sys.argv[1])\n"
        "try:\n    refused.lock()\nexcept ValueError:\n    refused.remove_unused()\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, running.path], capture_output=True, text=True)
    assert done.stdout == "refused\n" and (running.path / ".lock").exists(), done.stderr
    running.remove_unused()
    assert not running.path.exists()
