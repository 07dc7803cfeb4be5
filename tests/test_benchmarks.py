"""Test benchmarks with annotation files: all formats that circulate, invalid input, leaks, and the cached table."""

import csv
import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import datasets
import pytest

from modeling_pig.benchmarks import load_benchmark
from modeling_pig.benchmarks.annotations import Annotations, UnknownFormatError
from modeling_pig.benchmarks.builder import hash_ids
from modeling_pig.benchmarks.check_videos import find_annotated_videos
from modeling_pig.benchmarks.msrvtt import _query_digest
from modeling_pig.benchmarks.msvd import Msvd

from .benchmark_stand_ins import (
    DIALECTS,
    DIDEMO,
    DIDEMO_OTHER_NAME,
    MSRVTT_1K_TEST,
    MSRVTT_7K,
    MSRVTT_9K,
    MSRVTT_OFFICIAL,
    MSVD,
    VATEX,
    WRITERS,
    captions_of,
    paragraph_of,
)
from .video_files import numbered_frames, write_video


SPLITS = {"msrvtt_3k": MSRVTT_OFFICIAL, "msvd": MSVD, "vatex": VATEX, "didemo": DIDEMO}
# Options for the small size of the stand-ins.
OPTIONS = {"msrvtt_1k": {"validation": 3}}


@pytest.fixture(autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a stand-in, unless it exists, and loads it; `load.write` writes it only."""

    def load(name: str, dialect: str | None = None, with_videos: bool = False, **options):
        if not (tmp_path / "annotations").exists():
            write(name, dialect, with_videos)
        folders = {"annotations": tmp_path / "annotations", "videos": tmp_path / "videos"}
        return load_benchmark(name, **{**folders, **OPTIONS.get(name, {}), **options})

    def write(name: str, dialect: str | None = None, with_videos: bool = False) -> Path:
        WRITERS[name](tmp_path, dialect or DIALECTS[name][0], with_videos)
        return tmp_path / "annotations"

    load.write = write
    return load


def change_captions(annotations: Path, changes: dict[str, list]) -> dict[str, list]:
    """Change the captions of some videos of MSVD in its file; return all."""
    path = annotations / "captions_msvd.json"
    captions = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(captions))
    return captions


def captions_by_id(split) -> dict[str, list[str]]:
    return dict(zip(split["video_id"], split["captions"], strict=True))


def description(benchmark, split: str = "test") -> str:
    return benchmark[split].info.description


# Formats


@pytest.mark.parametrize(
    ("name", "dialect"), [(name, dialect) for name in SPLITS for dialect in DIALECTS[name] if name != "didemo"]
)
def test_all_dialects_give_the_same_captions(load, name, dialect):
    benchmark = load(name, dialect)
    assert list(benchmark) == ["train", "validation", "test"]
    for split, ids in SPLITS[name].items():
        assert set(benchmark[split]["video_id"]) == set(ids)
        assert captions_by_id(benchmark[split]) == {video_id: captions_of(video_id) for video_id in ids}


@pytest.mark.parametrize("dialect", DIALECTS["msrvtt_1k"])
def test_all_dialects_of_msrvtt_1k_give_the_same_captions(load, dialect):
    benchmark = load("msrvtt_1k", dialect)
    assert captions_by_id(benchmark["test"]) == {video_id: [captions_of(video_id)[1]] for video_id in MSRVTT_1K_TEST}
    train, held_out = benchmark["train"], benchmark["validation"]
    assert (len(train), len(held_out)) == (len(MSRVTT_9K) - 3, 3)
    captions = captions_by_id(train) | captions_by_id(held_out)
    assert captions == {video_id: captions_of(video_id) for video_id in MSRVTT_9K}


def test_rows_are_in_the_order_of_the_list(load):
    assert load("msrvtt_1k", validation=0, splits=["train"])["train"]["video_id"][:] == MSRVTT_9K


@pytest.mark.parametrize("dialect", DIALECTS["didemo"])
def test_didemo_joins_the_descriptions_of_the_listed_name(load, dialect):
    benchmark = load("didemo", dialect)
    for split, names in DIDEMO.items():
        assert captions_by_id(benchmark[split]) == {name: [paragraph_of(name)] for name in names}
    assert "test: 6 of 9" in description(benchmark)
    assert "exactly the listed name" in description(benchmark)


def test_didemo_can_merge_all_names_of_a_video(load):
    benchmark = load("didemo", merge="base_id")
    first, second = DIDEMO["test"]
    merged = captions_by_id(benchmark["test"])
    assert list(merged) == [first.removesuffix("."), second.removesuffix(".mov")]
    both = zip(captions_of(second), captions_of(DIDEMO_OTHER_NAME), strict=True)
    assert merged[second.removesuffix(".mov")] == [" ".join(text for pair in both for text in pair)]
    assert "test: 9 of 9" in description(benchmark)


def test_didemo_joins_records_that_repeat_once(load):
    path = load.write("didemo") / "test_data.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps([*records, *records[:2]]))
    benchmark = load("didemo")
    assert captions_by_id(benchmark["test"]) == {name: [paragraph_of(name)] for name in DIDEMO["test"]}
    assert "test: 6 of 9" in description(benchmark)


def test_lists_may_be_csv_json_or_have_other_line_ends(load):
    annotations = load.write("msvd")
    expected = load("msvd")["test"].to_list()
    lists = {
        "crlf": "\ufeff" + "\r\n".join(MSVD["test"]) + "\r\n\r\n",
        "old mac": "\r".join(MSVD["test"]),
        "json": json.dumps(MSVD["test"]),
        "csv": "\n".join(['"video_id"', *MSVD["test"], ""]),
    }
    for form, text in lists.items():
        (annotations / "test_list.txt").write_bytes(text.encode())
        assert load("msvd")["test"].to_list() == expected, form


def test_files_of_captions_named_by_split_replace_lists(load):
    annotations = load.write("msvd")
    for file in annotations.iterdir():
        file.unlink()
    for split, ids in MSVD.items():
        (annotations / f"MSVD-{split}.json").write_text(json.dumps({i: captions_of(i) for i in ids}))
    assert {split: rows["video_id"][:] for split, rows in load("msvd").items()} == MSVD


def test_test_split_of_1k_a_loads_from_its_csv_alone(load):
    annotations = load.write("msrvtt_1k")
    for file in annotations.iterdir():
        if file.name != "MSRVTT_JSFUSION_test.csv":
            file.unlink()
    assert load("msrvtt_1k", splits=["test"])["test"]["video_id"][:] == MSRVTT_1K_TEST
    with pytest.raises(ValueError, match="no list of the train videos"):
        load("msrvtt_1k")


def test_files_in_subfolders_are_found_and_hidden_ones_are_not(load):
    annotations = load.write("vatex")
    (annotations / "lists").mkdir()
    for file in annotations.glob("*.txt"):
        file.rename(annotations / "lists" / file.name)
    (annotations / ".test_list_copy.txt").write_text(VATEX["train"][0])
    (annotations / ".hidden").mkdir()
    (annotations / ".hidden" / "test_list.txt").write_text(VATEX["train"][0])
    assert set(load("vatex")["test"]["video_id"]) == set(VATEX["test"])


def test_white_space_in_captions_is_normalised(load):
    annotations = load.write("msvd")
    change_captions(annotations, {MSVD["test"][0]: ["  a \u00a0 man\r\nsings\t", "a man sings", "", " \n"]})
    benchmark = load("msvd")
    assert benchmark["test"][0]["captions"] == ["a man sings", "a man sings"]
    assert "test: 2 empty captions were left out." in description(benchmark)


def test_files_are_recognised_by_content_instead_of_name(load):
    annotations = load.write("msrvtt_1k")
    expected = {split: rows.to_list() for split, rows in load("msrvtt_1k").items()}
    for number, file in enumerate(sorted(annotations.iterdir())):
        file.rename(annotations / f"{number}.dat")
    assert {split: rows.to_list() for split, rows in load("msrvtt_1k").items()} == expected


# Videos


@pytest.mark.parametrize("name", list(WRITERS))
def test_videos_of_all_benchmarks_are_found(load, tmp_path, name, caplog):
    benchmark = load(name, with_videos=True, strict=True)
    for rows in benchmark.values():
        assert rows.column_names == ["video_id", "video", "captions", "start", "end"]
        for row in rows:
            assert os.path.exists(row["video"])
            assert Path(row["video"]).stem.split(".")[0] == row["video_id"].split(".")[0]
            if name == "didemo" and not os.path.isdir(row["video"]):
                assert (row["start"], row["end"]) == (0.0, 30.0)
            else:
                assert row["start"] is row["end"] is None
    assert "were found" not in caplog.text
    report = (tmp_path / "videos" / ".datasets" / f"{name}-videos.csv").read_text()
    assert report.split() == ["split,video_id,reason"]
    if name == "didemo":
        assert os.path.isdir(benchmark["test"]["video"][0])
        assert "test: 1 video is a folder of frames, of which all are read." in description(benchmark)
        assert "train: 1 video is a folder" not in description(benchmark)


def test_missing_and_unreadable_videos_are_reported_and_have_no_path(load, tmp_path, caplog):
    load.write("msvd", with_videos=True)
    missing, broken = MSVD["test"][0], MSVD["test"][2]
    (tmp_path / "videos" / f"{missing}.avi").unlink()
    (tmp_path / "videos" / f"{broken}.avi").write_bytes(b"no video")
    benchmark = load("msvd")
    assert [bool(path) for path in benchmark["test"]["video"]] == [False, True, False]
    assert benchmark["test"]["captions"][0] == captions_of(missing)
    report = tmp_path / "videos" / ".datasets" / "msvd-videos.csv"
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"1 of 3 videos of test were found and open; the others are listed in {report}." in warnings[0]
    assert "of train were found" not in warnings[0]
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["video_id"]) for row in rows] == [("test", missing), ("test", broken)]
    assert rows[0]["reason"] == "no file"
    assert rows[1]["reason"] not in ("", "no file")
    with pytest.raises(ValueError, match=f"2 videos are missing .*: {missing} .no file., {broken} .*strict=False"):
        load("msvd", strict=True)


def test_the_report_keeps_the_splits_of_earlier_loads(load, tmp_path):
    load("vatex", splits=["train"])
    load("vatex", splits=["test"])
    with open(tmp_path / "videos" / ".datasets" / "vatex-videos.csv", newline="") as file:
        listed = [row["video_id"] for row in csv.DictReader(file)]
    assert listed == VATEX["train"] + VATEX["test"]


def test_the_report_is_updated_with_a_cached_table(load, tmp_path):
    load.write("msvd", with_videos=True)
    missing, broken = MSVD["test"][0], MSVD["test"][2]
    (tmp_path / "videos" / f"{broken}.avi").write_bytes(b"no video")
    video = tmp_path / "videos" / f"{missing}.avi"
    report = tmp_path / "videos" / ".datasets" / "msvd-videos.csv"

    def load_without_the_video() -> str:
        shutil.move(video, tmp_path / "elsewhere.avi")
        load("msvd")
        shutil.move(tmp_path / "elsewhere.avi", video)
        return report.read_text()

    first = load_without_the_video()
    assert f"test,{missing},no file" in first
    load("msvd")
    assert missing not in report.read_text()
    assert load_without_the_video() == first
    report.unlink()
    assert load_without_the_video() == first


def test_msvd_videos_are_found_by_their_file_names(load, tmp_path):
    annotations = load.write("msvd")
    ids = [video_id for ids in MSVD.values() for video_id in ids]
    names = {video_id: f"vid{number}" for number, video_id in enumerate(ids, 1)}
    (annotations / "youtube_mapping.txt").write_text("".join(f"{i} {name}\n" for i, name in names.items()))
    for name in names.values():
        write_video(tmp_path / "videos" / f"{name}.avi", numbered_frames(8), codec="mpeg4")
    for rows in load("msvd", strict=True).values():
        assert captions_by_id(rows) == {video_id: captions_of(video_id) for video_id in rows["video_id"]}
        assert [Path(path).stem for path in rows["video"]] == [names[video_id] for video_id in rows["video_id"]]

    broken = tmp_path / "videos" / f"{names[ids[0]]}.avi"
    broken.write_bytes(b"no video")
    options = {"annotations": annotations}
    videos = find_annotated_videos("msvd", tmp_path / "videos", tmp_path / "cache", options)
    assert videos[ids[0]].source == str(broken)


# The table


def test_the_table_is_rebuilt_for_changed_files(load, tmp_path):
    annotations = load.write("msvd", with_videos=True)
    video = tmp_path / "videos" / f"{MSVD['test'][0]}.avi"
    shutil.move(video, tmp_path / "elsewhere.avi")
    assert load("msvd")["test"]["video"][0] == ""
    shutil.move(tmp_path / "elsewhere.avi", video)
    assert load("msvd")["test"]["video"][0] == str(video)
    captions = annotations / "captions_msvd.json"
    status = captions.stat()
    captions.write_text(captions.read_text().replace("a person", "a nosrep"))  # of the same size
    os.utime(captions, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load("msvd")["test"][0]["captions"][0].startswith("a nosrep")


def test_the_table_is_rebuilt_in_a_moved_folder(load, tmp_path, monkeypatch):
    load.write("msvd", with_videos=True)
    relative = {"annotations": Path("annotations"), "videos": Path("videos")}
    monkeypatch.chdir(tmp_path)
    load("msvd", **relative)
    (tmp_path / "moved").mkdir()
    for name in relative:
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir(tmp_path / "moved")
    for options in ({"lists": {"train": Path("annotations", "train_list.txt")}}, {}):
        benchmark = load_benchmark("msvd", **relative, **options)
        assert all(os.path.exists(path) for rows in benchmark.values() for path in rows["video"])


def test_the_table_is_built_once(load, monkeypatch, caplog):
    first = load("msvd")
    monkeypatch.setattr(Msvd, "_split_generators", None)
    second = load("msvd")
    assert second["test"].to_list() == first["test"].to_list()
    assert description(second) == description(first)
    assert len(caplog.records) == 2  # each load warns of missing videos


def test_a_test_split_loads_without_training_captions(load):
    annotations = load.write("vatex")
    (annotations / "vatex_training_v1.0.json").unlink()
    assert list(load("vatex", splits=["test"])) == ["test"]
    assert list(load("vatex", splits="test")) == ["test"]
    with pytest.raises(ValueError, match="no caption of 3 of the 3 train videos"):
        load("vatex")


def test_msrvtt_1k_holds_out_videos_by_its_seed(load):
    first = set(load("msrvtt_1k", splits=["validation"])["validation"]["video_id"])
    assert set(load("msrvtt_1k")["validation"]["video_id"]) == first
    assert any(set(load("msrvtt_1k", seed=seed)["validation"]["video_id"]) != first for seed in (1, 2, 3))
    train = load("msrvtt_1k", train="7k", validation=1)
    assert {*train["train"]["video_id"], *train["validation"]["video_id"]} == set(MSRVTT_7K)
    assert "trained on the 7k, of which 1 videos (seed 0) are held out" in description(train)


def test_the_description_lists_the_files_that_were_read(load):
    text = description(load("msrvtt_1k"))
    first, *notes = text.split("\n")
    assert first == (
        "MSR-VTT 1k-A (JSFusion): the query of a test video is one sentence; trained on the 9k, of which 3 videos "
        "(seed 0) are held out for validation. Read: train 7 videos with 21 captions (ids: train_9k.csv, 3 held out), "
        "validation 3 videos with 9 captions (ids: train_9k.csv, 3 held out), test 3 videos with 3 captions (ids: "
        "MSRVTT_JSFUSION_test.csv); captions: videodatainfo_0.json, MSRVTT_JSFUSION_test.csv."
    )
    assert notes[:2] == ["train: 7 videos, while 8,997 are published.", "test: 3 videos, while 1,000 are published."]


def test_description_compares_test_ids_with_the_published_split(load, monkeypatch):
    monkeypatch.setattr("modeling_pig.benchmarks.vatex.Vatex.EXPECTED", dict.fromkeys(VATEX, (2, None)))
    text = description(load("vatex"))
    assert "test: these 2 ids are not those of the HGR split: do not compare with its figures." in text
    monkeypatch.setattr("modeling_pig.benchmarks.vatex.Vatex.KNOWN_TEST", (hash_ids(VATEX["test"]), "the HGR split"))
    assert "(ids: test_list.txt, which are those of the HGR split)" in description(load("vatex", splits=["test"]))


# Chosen lists, and contradictions


def test_a_chosen_list_is_used_and_reported(load, tmp_path):
    load.write("vatex")
    chosen = tmp_path / "mine.txt"
    chosen.write_text(VATEX["validation"][0])
    benchmark = load("vatex", lists={"validation": str(chosen)})
    assert benchmark["validation"]["video_id"][:] == [VATEX["validation"][0]]
    assert "ids: mine.txt (chosen by `lists`)" in description(benchmark)
    chosen.write_text(VATEX["validation"][1])
    assert load("vatex", lists={"validation": str(chosen)})["validation"]["video_id"][:] == [VATEX["validation"][1]]


def test_two_different_lists_of_a_split_are_refused(load):
    annotations = load.write("vatex")
    for folder in ("a", "b"):
        (annotations / folder).mkdir()
    (annotations / "test_list.txt").rename(annotations / "b" / "test_list.txt")
    copy = annotations / "a" / "test_list_copy.txt"
    copy.write_text("\n".join(reversed(VATEX["test"])))
    assert len(load("vatex")["test"]) == 2  # equal ids
    copy.write_text(VATEX["test"][1])
    choices = r"lists={'test': 'a/test_list_copy.txt'} or lists={'test': 'b/test_list.txt'}"
    with pytest.raises(ValueError, match=rf"a/test_list_copy.txt \(1\) and .*b/test_list.txt \(2\) .*: {choices}"):
        load("vatex")
    for name in ("test_list_copy.txt", "a/test_list_copy.txt"):
        assert load("vatex", lists={"test": name})["test"]["video_id"][:] == [VATEX["test"][1]]
    copy.rename(annotations / "a" / "test_list.txt")
    with pytest.raises(ValueError, match="are several files; name one of 'a/test_list.txt', 'b/test_list.txt'"):
        load("vatex", lists={"test": "test_list.txt"})


@pytest.mark.parametrize(
    ("name", "dialect", "other_list", "ids", "message"),
    [
        ("vatex", "dict", "test1k5_sec_list.txt", VATEX["validation"], "test: test_list.txt is read"),
        ("msrvtt_3k", "frozen_in_time", "train_list.txt", ["video0"], "train: train_list_full.txt is read"),
    ],
)
def test_the_published_list_of_several_is_read(load, monkeypatch, name, dialect, other_list, ids, message):
    """CLIP2Video's folder of VATEX holds two test lists, Frozen in Time's folder of MSR-VTT two training lists."""
    (load.write(name, dialect) / other_list).write_text("\n".join(ids))
    monkeypatch.setattr("modeling_pig.benchmarks.vatex.Vatex.KNOWN_TEST", (hash_ids(VATEX["test"]), "the HGR split"))
    monkeypatch.setattr("modeling_pig.benchmarks.msrvtt.MsrVtt3k.EXPECTED", dict.fromkeys(MSRVTT_OFFICIAL, (6, None)))
    benchmark = load(name)
    assert {split: rows["video_id"][:] for split, rows in benchmark.items()} == SPLITS[name]
    assert f"{message}, which is the published list, not {other_list}." in description(benchmark)


def test_two_different_files_of_captions_are_refused(load):
    annotations = load.write("msvd")
    captions = change_captions(annotations, {})
    spaced = {video_id: [f" {text}" for text in texts] for video_id, texts in captions.items()}
    (annotations / "copy.json").write_text(json.dumps(spaced))
    assert load("msvd")["test"][0]["captions"] == captions_of(MSVD["test"][0])
    captions[MSVD["test"][0]][0] = "something else"
    (annotations / "copy.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match="captions_msvd.json and .*copy.json both .* keep one of the two"):
        load("msvd")


@pytest.mark.parametrize(
    ("name", "lists", "message"),
    [
        ("msrvtt_3k", {"train": MSRVTT_7K}, "2 videos are both in train .* and in validation .* The 7k is"),
        ("msrvtt_1k", {"train": [*MSRVTT_9K, MSRVTT_1K_TEST[0]]}, "1 videos are both in train .* and in test"),
        ("msrvtt_1k", {"validation": MSRVTT_OFFICIAL["validation"]}, "2 videos are both in train .* in validation"),
        ("didemo", {"train": [DIDEMO_OTHER_NAME]}, "1 videos are both in train .* and in test"),
    ],
)
def test_leaks_of_chosen_lists_are_refused(load, tmp_path, name, lists, message):
    load.write(name)
    (split, ids) = next(iter(lists.items()))
    (tmp_path / "mine.txt").write_text("\n".join(ids))
    with pytest.raises(ValueError, match=message):
        load(name, lists={split: str(tmp_path / "mine.txt")})


@pytest.mark.parametrize("train", ["9k", "7k"])
def test_a_test_video_in_a_training_list_is_refused(load, train):
    annotations = load.write("msrvtt_1k")
    with open(annotations / f"train_{train}.csv", "a") as file:
        file.write(f"\n{MSRVTT_1K_TEST[1]}")
    message = rf"both in train \(train_{train}.csv\) and in test \(MSRVTT_JSFUSION_test.csv\), such as 'video9999'"
    with pytest.raises(ValueError, match=message):
        load("msrvtt_1k", train=train, validation=1)


def test_a_leak_is_refused_if_the_test_split_is_not_loaded(load, tmp_path):
    load.write("msrvtt_1k")
    (tmp_path / "mine.txt").write_text("\n".join(MSRVTT_9K + MSRVTT_1K_TEST))
    with pytest.raises(ValueError, match="3 videos are both in train .* and in test"):
        load("msrvtt_1k", lists={"train": str(tmp_path / "mine.txt")}, splits=["train"])


def test_list_of_1k_b_is_refused_for_1k_a(load, tmp_path, monkeypatch):
    annotations = load.write("msrvtt_1k")
    one_k_b = ["video9", "video7012", "video8000"]
    (annotations / "list_miech.txt").write_text("\n".join(one_k_b))
    monkeypatch.setattr("modeling_pig.benchmarks.msrvtt._1K_B", (hash_ids(one_k_b),))
    assert set(load("msrvtt_1k")["test"]["video_id"]) == set(MSRVTT_1K_TEST)  # the list is not used
    with pytest.raises(ValueError, match="list_miech.txt .* is the test list of 1k-B"):
        load("msrvtt_1k", lists={"test": "list_miech.txt"})
    with pytest.raises(ValueError, match="One of the lists is of 1k-B"):
        load("msrvtt_1k", lists={"train": "list_miech.txt"})


# Invalid input


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("msrvtt_1k", {"splits": ["dev"]}, "`splits` names 'dev'; the splits are train, validation, test"),
        ("msrvtt_1k", {"splits": []}, "`splits` is empty"),
        ("msrvtt_1k", {"lists": {"test": "nowhere.txt"}}, "`lists` names 'nowhere.txt', which is no file"),
        ("msrvtt_1k", {"lists": {"test": "README.md"}}, "`lists` names .*README.md', which is no list of MSR-VTT"),
        ("msrvtt_1k", {"train": "8k"}, "`train` is '8k'; it is '9k' or '7k'"),
        ("msrvtt_1k", {"validation": -1}, "`validation` is -1"),
        ("msrvtt_1k", {"validation": 10}, "`validation` is 10, but there are only 10 training videos"),
        ("msrvtt_1k", {"annotations": ""}, "needs `annotations`"),
        ("msrvtt_1k", {"annotations": "nowhere"}, "`annotations` is 'nowhere', which is no folder"),
        ("msrvtt_1k", {"sede": 1}, "msrvtt_1k has no option 'sede'; did you mean 'seed'"),
        ("didemo", {"merge": "both"}, "`merge` is 'both'; it is 'list' or 'base_id'"),
        # wrong types
        (None, {}, "name of a benchmark is one of .*; got None"),
        ("msvd", {"splits": 3}, "`splits` is 3; it is a list of train, validation, test"),
        ("msvd", {"lists": {"test": 3}}, "`lists` is {'test': 3}; it names"),
        ("msrvtt_1k", {"validation": "5"}, "`validation` is '5'; it is a number"),
    ],
)
def test_invalid_options_are_refused(load, name, options, message):
    annotations = load.write(name or "msvd")
    (annotations / "README.md").write_text("[The](annotations) of MSR-VTT")
    with pytest.raises(ValueError, match=message) as error:
        load(name, **options)
    assert "\n" not in str(error.value)


def test_moving_shapes_takes_no_annotations(tmp_path):
    with pytest.raises(ValueError, match="moving_shapes takes no `annotations`"):
        load_benchmark("moving_shapes", videos=tmp_path, annotations=tmp_path)


def test_unwritable_cache_folder_is_an_error(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to .*give a folder for the table as `cache_dir`"):
        load("msvd", cache_dir=tmp_path / "file" / "cache")


def test_files_of_another_benchmark_are_an_error(load):
    load.write("msvd")
    with pytest.raises(ValueError, match="Files of .* in it: none. Ignored: .* is no id of"):
        load("vatex")


def test_folder_without_annotations_is_an_error(load, tmp_path):
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (tmp_path / "videos").mkdir()
    (annotations / "picture.png").write_bytes(b"\x89PNG\0\0")
    (annotations / "empty.txt").write_text(" \n")
    (annotations / "notes.csv").write_text("split,video_id,reason\ntest,x,y\n")
    message = "empty.txt .empty.; notes.csv .a table without captions: .*.; picture.png .neither text .* nor a pickle"
    with pytest.raises(ValueError, match=message):
        load("msvd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [\n"b",\n}', "captions_msvd.json .broken JSON at line 3: "),
        ('[\n{"clip_id": "a"},\n{"clip_id"\n', "captions_msvd.json .broken JSON at line 4: "),
        ('{"clip_id": "a", "text": "b"}\n{"clip_id": \n', "captions_msvd.json .broken JSON at line 2: "),
        ("[" * 100_000, "captions_msvd.json .*nested too deeply"),
        ('{"-4wsuPCjDBc_5_15": [["a", "man"], 3]}', "captions_msvd.json .a caption that is a int, not text"),
        (
            '[{"name": "a", "text": "a"}]',
            "without a video id: their keys are name, text; ids are read from video_id, ",
        ),
        (
            '[{"clip_id": "-4wsuPCjDBc_5_15", "x": "a"}]',
            "without captions: their keys are clip_id, x; .* captions from",
        ),
        (
            "video_id,x\n-4wsuPCjDBc_5_15,a",
            "without captions: its columns are video_id, x; ids are read",
        ),
        ("name,text\n-4wsuPCjDBc_5_15,a", "'name,text' is no id of MSVD, .*; ids are read from video_id"),
        ("[1, 2]", "captions_msvd.json .JSON of no known structure"),
        ("{}", "captions_msvd.json .holds no video ids"),
        (
            '{"-4wsuPCjDBc_5_15": ["a"],\n"-4wsuPCjDBc_5_15": ["b"]}',
            "captions_msvd.json, line 1: the key '-4wsuPCjDBc_5_15' comes again in the same JSON object",
        ),
        ('[{"clip_id": "-4wsuPCjDBc_5_15", "text": "a", "text": "b"}]', "line 1: the key 'text' comes again"),
    ],
)
def test_broken_captions_are_an_error(load, content, message):
    annotations = load.write("msvd")
    (annotations / "captions_msvd.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load("msvd")
    assert "\n" not in str(error.value)


def test_a_damaged_file_that_a_split_needs_is_an_error(load):
    annotations = load.write("msrvtt_1k", "two_files")
    for name in ("train_9k.csv", "train_7k.csv"):
        (annotations / name).unlink()
    content = (annotations / "videodatainfo_1.json").read_text()
    (annotations / "videodatainfo_1.json").write_text(content[: len(content) // 2])
    (annotations / "settings.json").write_text('{"broken": ')
    message = "videodatainfo_1.json is damaged .broken JSON at line .*, and without it .* get the file again"
    with pytest.raises(ValueError, match=message):
        load("msrvtt_1k")
    assert len(load("msrvtt_1k", train="7k", validation=1)["train"]) == len(MSRVTT_7K) - 1  # the file is not needed
    (annotations / "train.txt").write_text("\n".join(MSRVTT_9K))
    with pytest.raises(ValueError, match=r"no caption of .* Damaged: videodatainfo_1.json \(.*\); get it again."):
        load("msrvtt_1k")


def test_repeated_keys_in_other_files_are_ignored(load):
    (load.write("msvd") / "settings.json").write_text('{"size": "1", "size": "2"}')
    assert len(load("msvd")["test"]) == len(MSVD["test"])


def test_invalid_ids_are_an_error(load):
    annotations = load.write("msvd")
    for wrong in ("../secret", "a/b", "/etc/passwd", "..", "C:\\x", "video_1", "-4wsuPCjDBc"):
        (annotations / "train_list.txt").write_text("\n".join([MSVD["train"][0], wrong, *MSVD["train"][1:]]))
        with pytest.raises(ValueError, match="train_list.txt, line 2: .* is no id of MSVD, such as '-4wsu"):
            load("msvd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video_id,sentence\nvideo7020,a man, a plan\n", "line 2: 3 fields in 2 columns; put .* in double quotes"),
        ('video_id,sentence\nvideo7020,"a man\nvideo7012,b', "line 3: broken CSV"),
        ("video_id,sentence\nvideo7020,a man\n".encode("utf-16"), "test.csv is encoded as UTF-16; save .* as UTF-8"),
        (
            "video_id,sentence\nvideo7020,a man\n".encode("utf-16-be"),
            "test.csv is encoded as UTF-16; save .* as UTF-8",
        ),
    ],
)
def test_broken_csv_is_an_error(load, content, message):
    annotations = load.write("msrvtt_1k")
    (annotations / "MSRVTT_JSFUSION_test.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load("msrvtt_1k")


def test_broken_line_of_ids_and_captions_is_an_error(load):
    annotations = load.write("msvd", "text")
    with open(annotations / "AllVideoDescriptions.txt", "a") as file:
        file.write("\n-4wsuPCjDBc_5_15")
    with pytest.raises(ValueError, match="line 31: '-4wsuPCjDBc_5_15' is not an id, a space and a caption"):
        load("msvd")


def test_files_that_are_not_utf8_are_an_error(load):
    annotations = load.write("msvd", "corpus_csv")
    lines = (annotations / "corpus.csv").read_bytes().split(b"\r\n")
    lines[3] = lines[3].replace(b"person", b"p\xe9rson")
    (annotations / "corpus.csv").write_bytes(b"\r\n".join(lines))
    (annotations / "notes.txt").write_bytes(b"\xe9t\xe9")  # ignored: not an annotation file
    with pytest.raises(ValueError, match="corpus.csv, line 4: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        load("msvd")


def test_repeated_ids_and_queries_are_kept_once(load, caplog):
    annotations = load.write("msrvtt_1k")
    with open(annotations / "MSRVTT_JSFUSION_test.csv", "a") as file:
        file.write("ret9,msr7020,video7020,another sentence\n")
    benchmark = load("msrvtt_1k")
    assert benchmark["test"][0]["captions"] == [captions_of("video7020")[1]]
    assert benchmark["test"]["video_id"][:] == MSRVTT_1K_TEST
    assert "test: 1 repeated ids of MSRVTT_JSFUSION_test.csv were kept once." in caplog.text


def test_videos_without_captions_and_empty_lists_are_an_error(load):
    annotations = load.write("msvd")
    change_captions(annotations, {MSVD["test"][1]: [" ", None]})
    with pytest.raises(ValueError, match="no caption of 1 of the 3 test videos, such as 'zzit5b_-ukg_5_20'"):
        load("msvd")
    (annotations / "test_list.txt").write_text("\n")
    with pytest.raises(ValueError, match="no list of the test videos.*test_list.txt .empty."):
        load("msvd")


@pytest.mark.parametrize("are_published", [True, False])
def test_captions_in_another_order_than_their_numbers_are_an_error(load, monkeypatch, are_published):
    annotations = load.write("msrvtt_1k", "jsfusion_pickle")
    if are_published:  # the order is checked by the queries, else by `sen_id`
        queries = "".join(_query_digest(captions_of(video_id)[1]) for video_id in sorted(MSRVTT_1K_TEST))
        monkeypatch.setattr("modeling_pig.benchmarks.msrvtt._1K_A", hash_ids(MSRVTT_1K_TEST))
        monkeypatch.setattr("modeling_pig.benchmarks.msrvtt._1K_A_QUERIES", queries)
    benchmark = load("msrvtt_1k")
    assert benchmark["test"]["captions"][0] == [captions_of(MSRVTT_1K_TEST[0])[1]]
    assert ("check their order" in description(benchmark)) != are_published
    path = annotations / "videodatainfo_0.json"
    tree = json.loads(path.read_text())
    sentences = sorted(tree["sentences"], key=lambda sentence: sentence["caption"])
    if are_published:
        sentences = [{**sentence, "sen_id": number} for number, sentence in enumerate(sentences)]
    path.write_text(json.dumps({**tree, "sentences": sentences}))
    with pytest.raises(ValueError, match="idx.pkl chooses .* by their number, but .*_0.json holds them in another"):
        load("msrvtt_1k")


def test_1k_a_without_valid_queries_is_an_error(load):
    choices = load.write("msrvtt_1k", "jsfusion_pickle") / "jsfusion_val_caption_idx.pkl"
    choices.write_bytes(pickle.dumps(dict.fromkeys(MSRVTT_1K_TEST, 3)))
    with pytest.raises(ValueError, match="caption 3 of 'video7020' is chosen, which has 3"):
        load("msrvtt_1k")
    choices.unlink()
    with pytest.raises(ValueError, match="no query of a test video; put MSRVTT_JSFUSION_test.csv there"):
        load("msrvtt_1k")


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_reading_a_pickle_executes_no_code(load, tmp_path):
    annotations = load.write("msvd")
    (annotations / "captions_msvd.json").unlink()
    content = {MSVD["test"][0]: [["a"]], "x": Hostile(tmp_path / "executed")}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (annotations / "raw-captions.pkl").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(ValueError, match=r"it holds \w+.mkdir; if you trust its origin, convert it: .*json.dump"):
            load("msvd")
        assert not (tmp_path / "executed").exists()


def test_broken_pickles_are_an_error(tmp_path):
    for content in (b"\x80\x04", b"\x80\x04]\x94(K\x01", b"\x80\x04\x95\xff\xff", b"(dp0\nS'a"):
        (tmp_path / "raw-captions.pkl").write_bytes(content)
        annotations = Annotations(tmp_path, "MSVD", ".*", "x")
        assert annotations.files == []
        with pytest.raises(UnknownFormatError, match="a broken pickle"):
            annotations.read(tmp_path / "raw-captions.pkl")
