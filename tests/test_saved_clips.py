"""`pig search --save-clips`: what is saved under which name, and which files are left alone."""

import json
import os
import resource
import shutil

import pytest

from modeling_pig.retrieval.saved_clips import clip_name, save_clips
from modeling_pig.stores.results import SearchResult
from modeling_pig.video_file_pig import import_av, read_track

from .cli_helpers import assert_one_line_error


@pytest.fixture
def segments(pig, video_folder, model_folder) -> str:
    """Return the path of an index of the five videos of 2 s, in segments of 1 s."""
    status, _, error = pig("index", video_folder, "--model", model_folder, "--index", "s.lance", "--segment", 1)
    assert status == 0, error
    return "s.lance"


def duration_of(path) -> float:
    return read_track(import_av(), str(path)).metadata.duration


def test_found_segments_are_saved_once_and_kept_by_a_second_run(pig, segments, tmp_path):
    arguments = ("search", "--queries", "queries.txt", "--index", segments, "-k", 10, "--save-clips", "clips/found")
    (tmp_path / "queries.txt").write_text("a red circle\na blue star\n")
    status, _, error = pig(*arguments, "--json")
    assert status == 0 and error.splitlines()[-1] == "clips in clips/found: 10 saved (10 without re-encoding)"
    names = sorted(f"video_{n}_{time}.mp4" for n in range(5) for time in ("0m00s-0m01s", "0m01s-0m02s"))
    found = tmp_path / "clips/found"
    assert sorted(os.listdir(found)) == names
    # A copy ends a few frames of 1/12 s later.
    assert all(0.99 < duration_of(found / name) < 1.5 for name in names)
    before = {name: (found / name).stat().st_mtime_ns for name in names}
    assert "0 saved (0 without re-encoding), 10 were there already" in pig(*arguments)[2]
    assert {name: (found / name).stat().st_mtime_ns for name in os.listdir(found)} == before
    assert "10 saved (0 without re-encoding)" in pig(*arguments, "--exact")[2]  # other clips of the same segments
    assert len(os.listdir(found)) == 20
    assert duration_of(found / "video_0_0m01s-0m02s_2.mp4") == pytest.approx(1.0)


def test_other_files_are_not_overwritten(pig, index, tmp_path):
    (tmp_path / "clips").mkdir()
    secret = tmp_path / "secret.mp4"
    secret.write_text("secret")
    (tmp_path / "clips/video_0.mp4").symlink_to(secret)
    (tmp_path / "clips/video_1.mp4").write_text("mine")
    (tmp_path / "clips/video_2.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert pig("search", "a red circle", "--index", index, "--save-clips", "clips")[0] == 0
    assert secret.read_text() == "secret" and (tmp_path / "clips/video_1.mp4").read_text() == "mine"
    assert not (tmp_path / "nowhere.mp4").exists()
    assert {"video_0_2.mp4", "video_1_2.mp4", "video_2_2.mp4", "video_3.mp4"} <= set(os.listdir(tmp_path / "clips"))


@pytest.mark.parametrize(
    "path, start, end, name",
    [
        ("/v/a b.mp4", 30.0, 60.5, "a_b_0m30s-1m00.50s"),
        ("/v/../etc/passwd", None, None, "passwd"),
        ("/v/..mp4", None, None, "mp4"),
        ("/v/-rf *;$(x)\n.mp4", 0.0, None, "rf_x_0m00s-end"),
        ("/v/con.mp4", None, None, "video_con"),
        ("/v/\udcff\u202e.mp4", None, None, "video"),
        ("/v/صيف 2024.mkv", 3725.0, 3730.0, "صيف_2024_1h02m05s-1h02m10s"),
        (f"/v/{'é' * 200}.mp4", None, None, "é" * 60),
    ],
)
def test_names_are_safe(path, start, end, name):
    assert clip_name(path, start, end) == name


def test_videos_that_cannot_be_cut_are_listed(pig, segments, video_folder):
    (video_folder / "video_3.mp4").unlink()
    result = pig("search", "a red circle", "--index", segments, "-k", 10, "--save-clips", "clips", "--json")
    assert result[0] == 3 and len(json.loads(result[1])["results"]) == 10
    assert result[2].count("video_3.mp4: no such file") == 2 and "8 saved" in result[2]
    assert len(os.listdir("clips")) == 8


def test_a_folder_that_cannot_be_written_is_an_error_before_the_search(pig, index, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line_error(pig("search", "a", "--index", "none", "--save-clips", "file"), "file is not a folder")
    arguments = ("search", "a", "--index", "none", "--save-clips", "/proc/clips")
    assert_one_line_error(pig(*arguments), "Clips cannot be written into /proc/clips", "Give another folder")
    assert_one_line_error(pig("search", "a", "--index", index, "--exact"), "--save-clips DIR: give both")


def test_full_disk_ends_with_one_line_and_leaves_no_file(pig, segments):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        result = pig("search", "a", "--index", segments, "--save-clips", "clips")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_one_line_error(result, "cannot be written: File too large (0 clips are saved)")
    assert os.listdir("clips") == []


def test_cancelling_leaves_no_file(video_folder, tmp_path):
    result = SearchResult(1, 0.5, str(video_folder / "video_0.mp4"), 2.0, 0.0, 1.0)
    (tmp_path / "clips").mkdir()
    with pytest.raises(InterruptedError):
        save_clips([result], tmp_path / "clips", is_cancelled=lambda: True)
    assert os.listdir(tmp_path / "clips") == []
    shutil.copy(video_folder / "video_1.mp4", video_folder / "video_0.mp4")  # another video under the same path
    save_clips([result], tmp_path / "clips")
    assert len(save_clips([result], tmp_path / "clips").kept) == 1
