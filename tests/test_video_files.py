"""Test how the file of a video id is found, the fingerprint of a folder, and the check of files that do not open."""

import os
import shutil

import pytest
from PIL import Image

from modeling_pig.benchmarks.video_files import VideoFiles, find_unreadable

from .video_files import cut_file, numbered_frames, write_audio, write_video


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "videos"


@pytest.fixture
def make(folder):
    """Return a function that writes files into the folder, each with its name as the content."""

    def make(*names: str) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)

    return make


def find(folder, name: str) -> str | None:
    """Return the path that is found for a name, relative to the folder."""
    path = VideoFiles(folder).find(name)
    assert path is None or os.path.isabs(path)
    return None if path is None else os.path.relpath(path, folder)


# names


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("video7.mp4", "video7"),
        ("train/video7.webm", "video7"),
        ("x.mp4", "x.mov"),
        ("x.qt", "x.qt"),
        ("x.3gpp", "x.3gpp"),
        ("x.null", "x.null"),
        ("12090392@N02_555.", "12090392@N02_555."),
        ("12090392@N02_555", "12090392@N02_555."),
        ("12090392@N02_555..mp4", "12090392@N02_555."),
        ("12090392@N02_555.", "12090392@N02_555"),
        ("_a.b.c_1_2.avi", "_a.b.c_1_2"),
        ("x.mp4.mp4", "x.mp4"),
        ("videos/all/x.mp4", "all/x.mov"),
        ("x y/日本.mkv", "日本"),
        ("frames/x.mp4/000001.jpg", "x"),
        ("train/-x.y/frame_0001.jpeg", "-x.y.mov"),
        ("555/1.jpg", "555."),
    ],
)
def test_file_of_a_video_is_found_by_its_name(folder, make, file, name):
    make(file)
    assert find(folder, name) == (os.path.dirname(file) if file.lower().endswith(("jpg", "jpeg")) else file)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("video70.mp4", "video7"),
        ("Video7.mp4", "video7"),
        ("video7.json", "video7"),
        (".video7.mp4", "video7"),
        (".videos/video7.mp4", "video7"),
        ("other/video7.mp4", "all/video7.mp4"),
        ("a.mp4", "a.b"),  # ".b" is no extension
        ("video7/notes.txt", "video7"),
        ("video7/cover.jpg", "video7"),
        ("000001.jpg", ""),
        ("video7.mp4", "../videos/video7"),
    ],
)
def test_files_of_other_videos_are_not_found(folder, make, file, name):
    make(file)
    assert find(folder, name) is None


@pytest.mark.parametrize(
    ("name", "best_first"),
    [
        ("x.mov", ["b/c/x.mov", "x.avi", "x.mp4", "a/x.mp4", "b/x.mp4", "x/000001.jpg"]),
        ("x", ["b/c/x", "x.avi", "a/x.avi", "b/c/x.avi", "x/000001.jpg"]),
    ],
)
def test_best_of_several_candidates_is_found(folder, make, name, best_first):
    make(*reversed(best_first))
    for best in best_first:
        assert find(folder, name) == best.removesuffix("/000001.jpg")
        (folder / best).unlink()
    assert find(folder, name) is None


def test_links_are_followed_and_may_be_cyclic_or_broken(folder, make, tmp_path):
    make("train/x.mp4")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/y.mp4").write_text("y")
    (folder / "test").symlink_to(tmp_path / "elsewhere")
    (folder / "train/cycle").symlink_to(folder)
    (folder / "z.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert find(folder, "x") == "train/x.mp4"
    assert find(folder, "y") == "test/y.mp4"
    assert find(folder, "z") is None


def test_missing_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(ValueError, match=f"there is no folder .*{name}"):
            VideoFiles(tmp_path / name)


# fingerprint


def test_fingerprint_changes_with_the_videos_only(folder, make, tmp_path):
    make("a/x.mp4", "y/000001.jpg")
    seen = {VideoFiles(folder).fingerprint}

    def has_changed() -> bool:
        fingerprint = VideoFiles(folder).fingerprint
        assert VideoFiles(folder).fingerprint == fingerprint
        is_new = fingerprint not in seen
        seen.add(fingerprint)
        return is_new

    make("notes.txt", "manifest.jsonl", ".hidden.mp4")
    assert not has_changed()
    (folder / "a/x.mp4").write_text("longer than before")
    assert has_changed()
    os.utime(folder / "a/x.mp4", (1, 1))
    assert has_changed()
    (folder / "a/x.mp4").rename(folder / "a/z.mp4")
    assert has_changed()
    make("y/000002.jpg")
    assert has_changed()
    make("b.webm")
    assert has_changed()
    shutil.rmtree(folder / "y")
    assert has_changed()
    assert VideoFiles(folder.rename(tmp_path / "moved")).fingerprint in seen


# unreadable videos


def test_unreadable_videos_are_returned_with_the_reason(tmp_path, capfd):
    frames = numbered_frames(4)
    good = [write_video(tmp_path / "-good.mp4", frames), write_video(tmp_path / "good.avi", frames)]
    whole_frames, cut_frames, no_frames = (tmp_path / name for name in ("whole", "cut", "none"))
    for folder in (whole_frames, cut_frames, no_frames):
        folder.mkdir()
    for number in (2, 10):
        Image.fromarray(frames[0]).save(whole_frames / f"{number}.jpg")
        (cut_frames / f"{number}.jpg").write_bytes(b"no image")
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    (tmp_path / "empty.mp4").touch()
    bad = {
        tmp_path / "junk.mp4": "not a video file",
        tmp_path / "empty.mp4": "the file is empty",
        tmp_path / "none.mp4": "no such file",
        cut_file(write_video(tmp_path / "cut.mp4", frames), 0.5): "cut off before its index",
        write_audio(tmp_path / "sound.m4a"): "no video stream",
        cut_frames: "the frame 2.jpg cannot be read",
        no_frames: "without numbered JPEG",
    }
    problems = find_unreadable([*good, whole_frames, *bad], num_threads=2)
    assert list(problems) == [str(path) for path in bad]
    for path, reason in bad.items():
        assert reason in problems[str(path)]
    output, error = capfd.readouterr()
    assert "10/10" in error and not output

    assert find_unreadable(iter(good), progress=False) == {}
    assert capfd.readouterr() == ("", "")
