"""`pig index`, `list`, `delete`, `export` and `import`: output and errors that a user sees."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_pig import PigConfig, PigForRetrieval, VideoIndex
from modeling_pig.files import make_content_id

from .cli_helpers import assert_one_line_error


HOLDS_FIVE = "v.lance holds 5 entries of 5 videos; search: exact\n"


def summary(new: int = 0, changed: int = 0, unchanged: int = 0, failed: int = 0, removed: int = 0) -> str:
    counts = f"{new} new, {changed} changed, {unchanged} unchanged, {failed} failed, {removed} removed"
    return f"indexed {counts}\n"


def stored_embeddings(index: str) -> dict[str, list[np.ndarray]]:
    """Return the embeddings of each file in an index, by path."""
    store = VideoIndex(index)
    return {path: [found.embedding for found in store.get(path)] for path in sorted(store.files())}


@pytest.fixture
def index_folder(pig, video_folder, model_folder):
    """Run `pig index` on the five videos and the index v.lance, with further options."""

    def run(*options) -> tuple[int, str, str]:
        return pig("index", video_folder, "--model", model_folder, "--index", "v.lance", *options)

    return run


# valid input


def test_output_of_indexing(index_folder, video_folder):
    (video_folder / "@eaDir/video_0.mp4").mkdir(parents=True)
    for name in ("a.srt", "b.SRT", "c.\x1b", "@eaDir/video_0.mp4/thumb.jpg"):
        (video_folder / name).touch()
    status, output, error = index_folder()
    passed_over = "passed over 3 files that are not videos: 2 srt, 1 \\x1b\n"
    assert (status, output) == (0, summary(new=5) + passed_over + HOLDS_FIVE)
    assert "5/5" in error and "0 failed" in error  # the progress bar


def test_only_new_and_changed_files_are_encoded(index_folder, index, video_folder):
    names = sorted(path.name for path in video_folder.iterdir())
    before = stored_embeddings(index)
    shutil.copy(video_folder / names[0], video_folder / names[1])  # other content
    shutil.copy(video_folder / names[0], video_folder / "new.mp4")
    (video_folder / names[2]).rename(video_folder.parent / "elsewhere.mp4")
    status, output, _ = index_folder()
    deleted = "1 deleted files are still in the index: --prune removes them\n"
    holds_six = "v.lance holds 6 entries of 6 videos; search: exact\n"
    assert (status, output) == (0, summary(new=1, changed=1, unchanged=3) + deleted + holds_six)
    after = stored_embeddings(index)
    for number, path in enumerate(before):
        assert np.allclose(before[path], after[path], atol=1e-3) == (number != 1)
    assert np.allclose(after[str(video_folder / names[1])], after[str(video_folder / "new.mp4")], atol=1e-3)

    assert index_folder("--prune")[1].startswith(summary(unchanged=5, removed=1))
    assert str(video_folder / names[2]) not in stored_embeddings(index)
    assert index_folder()[1] == summary(unchanged=5) + HOLDS_FIVE


def test_several_sources_are_indexed_and_prune_keeps_other_sources(pig, video_folder, model_folder, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for number, path in enumerate(sorted(video_folder.iterdir())):
        path.rename(tmp_path / "abc"[number % 3] / path.name)
    status, output, _ = pig("index", "[ab]/**/*.mp4", "c", "--model", model_folder, "--index", "v.lance")
    assert status == 0 and output.startswith(summary(new=5))
    status, output, _ = pig("index", "c", "--model", model_folder, "--index", "v.lance", "--prune")
    assert (status, output) == (0, summary(unchanged=1) + HOLDS_FIVE)


def test_file_names_are_stored_unchanged(pig, model_folder, shape_videos, tmp_path):
    folder = tmp_path / "odd names"
    folder.mkdir()
    names = ["[red]x.mp4", "it's.mp4", "日本 語.mp4", 'a"b;c.mp4', "-k.mp4", "two\nlines.mp4", "<i>&amp;.mp4"]
    for number, name in enumerate(names):
        shutil.copy(shape_videos[number % 5], folder / name)
    assert pig("index", folder, "--model", model_folder, "--index", "v.lance")[0] == 0
    assert sorted(stored_embeddings("v.lance")) == sorted(str(folder / name) for name in names)
    command = ("index", folder, "--model", model_folder, "--index", "v.lance", "--prune")
    (folder / "it's.mp4").unlink()
    assert pig(*command)[1].startswith(summary(unchanged=6, removed=1))


def test_each_segment_is_an_entry(index_folder, video_folder):
    assert index_folder("--segment", 0.5, "--overlap", 0.25)[0] == 0  # the videos last 2 s
    for path in video_folder.iterdir():
        entries = [found.entry for found in VideoIndex("v.lance").get(str(path))]
        assert [(entry.start, entry.end) for entry in entries] == [(n / 4, n / 4 + 0.5) for n in range(7)]
        assert {entry.duration for entry in entries} == {2.0}


# export, import, list, delete


def test_export_and_import_keep_the_embeddings(pig, index):
    before = stored_embeddings(index)
    assert pig("export", "--index", index, "--output", "v.parquet")[:2] == (0, "exported 5 entries to v.parquet\n")
    status, output, _ = pig("import", "v.parquet", "--index", "copy.lance")
    assert (status, output) == (0, "copy.lance holds 5 entries of 5 videos; search: exact\n")
    after = stored_embeddings("copy.lance")
    assert before.keys() == after.keys() and all(np.array_equal(before[path], after[path]) for path in before)


def test_list_prints_the_files_of_an_index(pig, index, video_folder, model_folder):
    paths = sorted(str(path) for path in video_folder.iterdir())
    status, output, _ = pig("list", "--index", index)
    head, *rows, model, holds = output.splitlines(keepends=True)
    assert (status, head, holds) == (0, "entries  file\n", HOLDS_FIVE)
    assert [row.split() for row in rows] == [["1", path] for path in paths]
    assert model == f"model: {model_folder} (32 dimensions)\n"
    status, output, _ = pig("list", "--index", index, "--json")
    listed = [json.loads(line) for line in output.splitlines()]
    assert [file["path"] for file in listed] == paths and status == 0
    for file in listed:
        size, modified = os.stat(file["path"]).st_size, os.stat(file["path"]).st_mtime_ns
        expected = {"path": file["path"], "id": make_content_id(file["path"]), "entries": 1}
        assert file == {**expected, "size": size, "modified": modified}
    status, output, _ = pig("list", "--index", index, "--where", f"id = '{listed[0]['id']}'")
    assert paths[0] in output and paths[1] not in output


def test_delete_by_id(pig, index, video_folder):
    path = min(str(path) for path in video_folder.iterdir())
    status, output, error = pig("delete", "--index", index, "--id", make_content_id(path), "--id", "other")
    assert status == 3 and error.startswith("error: The id other is not in the index v.lance")
    assert output.startswith("deleted 1 entries of 1 files") and path not in VideoIndex(index).files()


def test_versions_are_listed_kept_and_restored(pig, index, video_folder, model_folder, index_folder):
    status, output, _ = pig("versions", "--index", index, "--keep", "all")
    assert status == 0 and output.splitlines()[-1].split()[-2:] == ["5", "all"]
    pig("delete", video_folder / "video_0.mp4", "--index", index)
    status, output, _ = pig("restore", "all", "--index", index)
    assert (status, output) == (0, HOLDS_FIVE)
    assert pig("versions", "--index", index, "--release", "all")[0] == 0
    assert_one_line_error(pig("restore", "all", "--index", index), "has no version 'all': none of its versions has a")
    assert_one_line_error(pig("restore", "999", "--index", index), "has no version 999: `pig versions` prints them")

    status, output, _ = index_folder("--again", "name = 'video_1.mp4'")
    assert status == 0 and output.startswith(summary(changed=1, unchanged=4))
    assert_one_line_error(index_folder("--again", "colour = 'x'"), "expected a field")


def test_delete_removes_the_entries_of_files(pig, index, video_folder, tmp_path):
    first, second, *kept = sorted(path.name for path in video_folder.iterdir())
    (video_folder / first).unlink()  # the entries of a deleted file can be deleted, too
    (tmp_path / "link").symlink_to(video_folder)
    status, output, error = pig("delete", video_folder / first, "link/" + second, "--index", index)
    assert (status, error) == (0, "")
    assert output == "deleted 2 entries of 2 files\nv.lance holds 3 entries of 3 videos; search: exact\n"
    assert sorted(stored_embeddings(index)) == [str(video_folder / name) for name in kept]

    status, output, error = pig("delete", "videos/" + kept[0], "none.mp4", "--index", index)
    assert (status, output.splitlines()[0]) == (3, "deleted 1 entries of 1 files")
    assert error == "error: none.mp4 is not in the index v.lance: `pig list` prints its files\n"
    assert_one_line_error(pig("delete", kept[1], "--index", index), f"{kept[1]} is not in the index v.lance")
    assert len(stored_embeddings(index)) == 2


def test_delete_by_pattern_condition_and_absence(pig, index, video_folder):
    names = sorted(path.name for path in video_folder.iterdir())
    status, output, _ = pig("delete", "videos/video_[01]*", "--index", index, "--dry-run")
    assert (status, output.splitlines()[-1]) == (0, "would delete 2 files")
    assert len(stored_embeddings(index)) == 5
    assert_one_line_error(pig("delete", "none/*.mp4", "--index", index), "none/*.mp4 is not in the index")
    assert_one_line_error(pig("delete", "--index", index), "Nothing to delete is named")
    assert_one_line_error(pig("delete", "--index", index, "--where", "duration <"), "is not a valid condition")

    (video_folder / names[0]).unlink()
    status, output, _ = pig("delete", "--index", index, "--missing")
    assert (status, output.splitlines()[0]) == (0, "deleted 1 entries of 1 files")
    status, output, _ = pig("delete", "videos/*", "--index", index, "--where", f"name in ('{names[1]}', '{names[2]}')")
    assert (status, output.splitlines()[0]) == (0, "deleted 2 entries of 2 files")
    assert sorted(stored_embeddings(index)) == [str(video_folder / name) for name in names[3:]]
    with pytest.raises(ValueError, match="does not hold 'videos/.*', a relative path: give absolute paths"):
        VideoIndex(index).delete([f"videos/{names[3]}"])


# failed files


def test_damaged_files_are_listed_and_skipped(index_folder, video_folder, tmp_path):
    (video_folder / "junk.mp4").write_bytes(b"junk" * 100)
    (video_folder / "empty.mp4").touch()
    (video_folder / "folder.mp4").mkdir()
    (video_folder / "nowhere.mp4").symlink_to("missing.mp4")
    odd = os.fsencode(video_folder) + b"/\xff\n.mp4"
    shutil.copy(next(video_folder.glob("video*")), odd)
    status, output, error = index_folder("--report", "failed.csv")
    assert (status, output.splitlines(keepends=True)[0]) == (3, summary(new=5, failed=5))
    lines = [line for line in error.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 5
    names = ("junk.mp4", "empty.mp4", "folder.mp4", "nowhere.mp4", "\\xff\\n.mp4")
    for name in names:
        assert sum(f"/{name}: " in line for line in lines) == 1
    with open(tmp_path / "failed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == {*names[:4], "\\udcff\n.mp4"}
    assert all(row["reason"] for row in rows)

    for name in names[:4]:
        path = video_folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    os.unlink(odd)
    assert index_folder("--report", "failed.csv")[:2] == (0, summary(unchanged=5) + HOLDS_FIVE)
    assert (tmp_path / "failed.csv").read_text().splitlines() == ["path,reason"]


def test_the_terminal_lists_20_failures_and_the_report_all(index_folder, video_folder, tmp_path):
    for number in range(25):
        (video_folder / f"junk_{number}.mp4").touch()
    assert index_folder()[2].splitlines()[-1] == "failed: 5 more, --report FILE.csv lists all of them"
    error = index_folder("--report", "failed.csv")[2]
    assert error.splitlines()[-1] == "failed: 5 more, see failed.csv"
    assert len((tmp_path / "failed.csv").read_text().splitlines()) == 26


def test_file_names_cannot_control_a_terminal(pig, index_folder, video_folder, model_folder):
    name, shown = "\x1b]0;title\x07\u202egpj.mp4", r"\x1b]0;title\x07\u202egpj.mp4"
    (video_folder / name).touch()
    _, _, error = index_folder()
    assert f"/{shown}: the file is empty" in error and not {"\x1b", "\x07", "\u202e"} & set(error)
    result = pig("index", f"missing{name}", "--model", model_folder, "--index", "v.lance")
    assert_one_line_error(result, f"no file or folder missing{shown}")
    assert not {"\x1b", "\x07", "\u202e"} & set(result[2])


def test_prune_keeps_the_files_of_an_unmounted_disk(index_folder, video_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for number, path in enumerate(sorted(video_folder.iterdir())[:2]):
        path.rename(disk / path.name)
        if number == 0:
            path.symlink_to(disk / path.name)
    (disk / "more").mkdir()
    shutil.copy(next(disk.glob("*1.mp4")), disk / "more")
    (video_folder / "more").symlink_to(disk / "more")
    assert index_folder()[1].startswith(summary(new=5))
    disk.rename(tmp_path / "elsewhere")
    for options in ([], ["--prune"]):
        status, output, _ = index_folder(*options)
        kept = "1 failed files keep their previous entries\n"  # the other failure is a folder
        assert (status, output) == (3, summary(unchanged=3, failed=2) + kept + HOLDS_FIVE)


def test_a_folder_of_damaged_files_creates_no_index(pig, model_folder, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/junk.mp4").write_bytes(b"junk")
    result = pig("index", "bad", "--model", model_folder, "--index", "v.lance")
    assert_one_line_error(result, "none of the 1 videos in bad can be decoded")
    assert "failed: " in result[2] and "junk.mp4" in result[2]
    assert not (tmp_path / "v.lance").exists()


def test_a_damaged_file_keeps_its_previous_entries(index_folder, index, video_folder):
    path = next(video_folder.iterdir())
    before = stored_embeddings(index)
    path.write_bytes(b"junk")
    status, output, _ = index_folder("--prune")
    assert status == 3
    kept = "1 failed files keep their previous entries\n"
    assert output.startswith(summary(unchanged=4, failed=1) + kept)
    assert stored_embeddings(index).keys() == before.keys()


# invalid input


def test_models_that_cannot_index(pig, video_folder, model_folder, make_model, processor, tmp_path):
    PigForRetrieval.from_pretrained(model_folder).save_pretrained("bare")
    PigConfig().text_config.save_pretrained("text")
    for model, message in {
        "./missing": "no model folder ./missing",
        str(tmp_path / "missing"): f"no model folder {tmp_path}/missing",
        "org/none": "org/none cannot be",  # on the Hub, which cannot be reached
        str(video_folder): "holds no model",
        "bare": "has a model but no processor",
        "text": "text",
    }.items():
        assert_one_line_error(pig("index", video_folder, "--model", model, "--index", "v.lance"), message)
    assert not (tmp_path / "v.lance").exists()


def test_an_emptied_folder_does_not_empty_the_index(index_folder, index, video_folder):
    shutil.rmtree(video_folder)
    video_folder.mkdir()
    assert_one_line_error(index_folder("--prune"), "holds no videos")
    assert len(stored_embeddings(index)) == 5


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that not even root can write to")
def test_unwritable_paths_are_errors(pig, video_folder, model_folder, tmp_path):
    command = ("index", video_folder, "--model", model_folder)
    assert_one_line_error(pig(*command, "--index", "/proc/v.lance"), "/proc/v.lance")
    assert_one_line_error(pig(*command, "--index", "v.lance", "--report", "/proc/failed.csv"), "/proc/failed.csv")
    assert not (tmp_path / "v.lance").exists()


def test_a_full_disk_keeps_the_index(index_folder, index, video_folder, monkeypatch):
    def fail(self, rows):
        raise OSError("The index v.lance cannot be written: No space left on device")

    shutil.copy(next(video_folder.iterdir()), video_folder / "new.mp4")
    with monkeypatch.context() as patch:
        patch.setattr("modeling_pig.stores.lance_store.LanceStore.upsert", fail)
        result = index_folder()
    assert_one_line_error(result, "No space left on device", "run the same command again to resume")
    assert len(stored_embeddings(index)) == 5
    assert index_folder()[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--segment", "nan"], "segment length is nan"),
        (["--segment", "10", "--overlap", "10"], "cannot overlap by 10 s"),
        (["--device", "toaster"], "no device 'toaster'"),
    ],
)
def test_invalid_options_are_errors(index_folder, tmp_path, options, message):
    assert_one_line_error(index_folder(*options), message)
    assert not (tmp_path / "v.lance").exists()


def test_missing_indexes_are_refused(pig, video_folder, model_folder):
    for command in (["export", "--output", "v.parquet"], ["list"], ["delete", video_folder]):
        assert_one_line_error(pig(*command, "--index", "none.lance"), "no index none.lance")
    assert_one_line_error(pig("import", "v.parquet", "--index", "none.lance"), "no file v.parquet")
    for uri in ("milvus://localhost/videos", "db://videos"):
        result = pig("index", video_folder, "--model", model_folder, "--index", uri)
        assert_one_line_error(result, uri, "names no index")


# several processes


def test_torchrun_splits_the_files_over_processes(video_folder, model_folder, tmp_path):
    videos = sorted(video_folder.iterdir())
    for number in range(20):
        shutil.copy(videos[number % 5], video_folder / f"more_{number}.mp4")
    (video_folder / "broken.mp4").write_bytes(b"junk")  # a failed file is no crash
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "modeling_pig.cli", "index", str(video_folder), "--model", model_folder, "--index", "v.lance"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launcher, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "broken.mp4: not a video file" in run.stderr
    # torch 2.8 prints lines of Gloo before.
    assert run.stdout.endswith(summary(new=25, failed=1) + "v.lance holds 25 entries of 25 videos; search: exact\n")
    shares = re.findall(r"share 1 of 2: 100%\|.*?\| (\d+)/", run.stderr)
    assert shares and 0 < int(shares[-1]) < 25
