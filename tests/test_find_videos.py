"""Finding video files: folders, patterns, links, names, and missing or unreadable files."""

import errno
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from modeling_pig.retrieval.find_videos import FoundVideo, FoundVideos, describe_passed_over, find_videos

from .video_files import numbered_frames, write_frame_folder, write_video


SYSTEM_FOLDERS = [
    "@eaDir",
    "@Recycle",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
]


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def relative_paths(folder, found: FoundVideos) -> list[str]:
    return [os.path.relpath(video.path, folder) for video in found.videos]


def test_files_are_found_by_extension_in_subfolders(tmp_path):
    touch(tmp_path, "b.MP4", "a.webm", "sub/c.avi", "sub/deep/d.mov", "e.mkv", "f.txt", ".hidden/g.mp4", "._h.mp4")
    touch(tmp_path, *(f"sub/{folder}/{name}" for folder in SYSTEM_FOLDERS for name in ("i.mp4", "e.mkv/thumb.jpg")))
    (tmp_path / "x.mp4").mkdir()  # must not be skipped silently: decoding it will fail
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == ["a.webm", "b.MP4", "e.mkv", "sub/c.avi", "sub/deep/d.mov", "x.mp4"]
    assert relative_paths(tmp_path, find_videos(tmp_path / "a.webm")) == ["a.webm"]
    assert relative_paths(tmp_path, find_videos(str(tmp_path / "f.txt"))) == ["f.txt"]  # the file itself is the source
    for path in (".hidden/g.mp4", "sub/@eaDir/i.mp4"):
        assert relative_paths(tmp_path, find_videos(tmp_path / path)) == [path]
    assert relative_paths(tmp_path, find_videos(tmp_path / ".hidden")) == [".hidden/g.mp4"]


def write_gif(path: Path, num_frames: int) -> None:
    first, *others = [PIL.Image.fromarray(frame) for frame in numbered_frames(num_frames)]
    first.save(path, save_all=True, append_images=others)


def test_names_that_other_files_share_are_recognised_by_content(tmp_path):
    write_gif(tmp_path / "animated.gif", 2)
    write_video(tmp_path / "whole.ts", numbered_frames(5))
    packets = (tmp_path / "whole.ts").read_bytes()
    for name, content in {
        "cut.TS": packets[100:],
        "damaged.mts": bytes(2000),
        "camera.mod": b"\0\0\1\xba" + bytes(2000),
        "theora.ogg": b"OggS" + bytes(24) + b"\x80theora",
        "damaged.gif": b"junk",
    }.items():
        (tmp_path / name).write_bytes(content)
    videos = relative_paths(tmp_path, find_videos(tmp_path))
    assert videos == sorted(path.name for path in tmp_path.iterdir())

    write_gif(tmp_path / "still.gif", 1)
    for name, content in {
        "index.ts": b"export const greeting = 'Gr\xfc\xdfe';\r\n\t" * 100,
        "empty.ts": b"",
        "module.mts": b"import { Game } from './game.mts';\n" * 100,
        "go.mod": b"module example.org/pig\n",
        "music.ogg": b"OggS" + bytes(24) + b"\x01vorbis",
    }.items():
        (tmp_path / name).write_bytes(content)
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == videos and not found.failures
    assert found.passed_over == {".gif": 1, ".ts": 2, ".mts": 1, ".mod": 1, ".ogg": 1}
    # An indexed file that was overwritten is not a deleted file.
    assert found.covers(str(tmp_path / "deleted.ts")) and not found.covers(str(tmp_path / "empty.ts"))
    found = find_videos([tmp_path, tmp_path / "still.gif"])  # the file itself is a source
    assert str(tmp_path / "still.gif") in [video.path for video in found.videos]


def test_files_that_are_not_videos_are_counted_once(tmp_path):
    touch(tmp_path, "a.mp4", "1.jpg", "sub/2.JPG", "sub/b.txt", "sub/README", ".c.txt", "@eaDir/a.mp4/3.jpg")
    (tmp_path / "link.txt").symlink_to("sub/b.txt")
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    write_frame_folder(tmp_path / "frames.mp4", np.zeros((2, 8, 8, 3), np.uint8))  # a video, and its frames
    for sources in (tmp_path, [tmp_path / "*.mp4", tmp_path, tmp_path / "sub/.."]):
        found = find_videos(sources)
        assert found.passed_over == {".jpg": 2, ".txt": 2, "": 1}
    line = "passed over 5 files that are not videos: 2 jpg, 2 txt, 1 without extension"
    assert describe_passed_over(found.passed_over) == line
    assert find_videos(tmp_path / "*.mp4").passed_over == {}
    touch(tmp_path, *(f"{number}.x{number}" for number in range(20)))
    assert describe_passed_over(find_videos(tmp_path).passed_over).endswith("1 x13, 15 others")


def test_found_videos_have_size_and_time(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    assert find_videos(tmp_path).videos == [FoundVideo(str(path), 5, 1_700_000_000_123_456_789)]


def test_overlapping_sources_give_each_file_once(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/sub/2.mp4", "b/3.mp4", "c/4.mp4")
    sources = [tmp_path / "b", tmp_path / "a", tmp_path / "a/sub", tmp_path / "a/sub/2.mp4"]
    assert relative_paths(tmp_path, find_videos(sources)) == ["a/1.mp4", "a/sub/2.mp4", "b/3.mp4"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("clips/**/*.mp4", ["clips/1.mp4", "clips/a/2.mp4", "clips/a/b/3.mp4"]),
        ("clips/**", ["clips/1.mp4", "clips/a/2.mp4", "clips/a/b/3.mp4", "clips/a/c/4.mkv"]),
        ("**/b", ["clips/a/b/3.mp4"]),  # all videos in a folder that matches
        ("cl?ps/**/[bc]/*", ["clips/a/b/3.mp4", "clips/a/c/4.mkv"]),
        ("[[]red].mp4", ["[red].mp4"]),
        ("[red].mp4", ["[red].mp4"]),  # a file with this name exists
    ],
)
def test_glob_patterns(tmp_path, monkeypatch, pattern, expected):
    touch(tmp_path, "clips/1.mp4", "clips/a/2.mp4", "clips/a/b/3.mp4", "clips/a/c/4.mkv", "[red].mp4", "r.mp4")
    touch(tmp_path, "clips/.hidden.mp4", "clips/.b/5.mp4")
    monkeypatch.chdir(tmp_path)
    assert relative_paths(tmp_path, find_videos(pattern)) == expected
    assert relative_paths(tmp_path, find_videos(str(tmp_path / pattern))) == expected


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "a.mp4")
    assert relative_paths(tmp_path, find_videos("~")) == ["a.mp4"] == relative_paths(tmp_path, find_videos("~/*.mp4"))


def test_links_are_followed_without_loops_or_duplicates(tmp_path):
    touch(tmp_path, "videos/b/1.mp4", "outside/2.mp4", "outside/deep/3.mp4")
    videos = tmp_path / "videos"
    (videos / "b/loop").symlink_to(videos)
    (videos / "a_link_to_b").symlink_to("b")  # sorts before b, but b has priority
    (videos / "outside").symlink_to(tmp_path / "outside")
    (videos / "outside_again").symlink_to(tmp_path / "outside/deep")
    (videos / "a_file.mp4").symlink_to(videos / "b/1.mp4")
    os.link(videos / "b/1.mp4", videos / "b/same.mp4")
    found = find_videos(videos)
    assert relative_paths(videos, found) == ["b/1.mp4", "outside/2.mp4", "outside/deep/3.mp4"]
    assert not found.failures
    # The path without links has priority over all sources.
    found = find_videos([videos, tmp_path / "outside"])
    assert relative_paths(tmp_path, found) == ["outside/2.mp4", "outside/deep/3.mp4", "videos/b/1.mp4"]
    (tmp_path / "link").symlink_to(videos)
    assert find_videos(tmp_path / "link").videos == find_videos(videos).videos


def test_broken_links_are_failures(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "broken.mp4").symlink_to("missing")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "notes").symlink_to("missing")
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == ["a.mp4"]
    assert [(os.path.basename(f.path), "broken link" in f.reason) for f in found.failures] == [
        ("broken.mp4", True),
        ("loop.mp4", True),
        ("notes", True),  # its target may have been a folder
    ]


def test_videos_behind_broken_links_do_not_count_as_deleted(tmp_path):
    """A broken link may point to a disk that is not mounted."""
    touch(tmp_path, "a.mp4", "sub/a.mp4")
    (tmp_path / "b.mp4").symlink_to("/nowhere/x.mp4")
    (tmp_path / "disk").symlink_to("/nowhere")
    found = find_videos(tmp_path)
    assert [failure.path for failure in found.failures] == [str(tmp_path / "b.mp4"), str(tmp_path / "disk")]
    for name in ("b.mp4", "disk/x.mp4", "disk/deep/x.mp4"):
        assert not found.covers(str(tmp_path / name))
    for name in ("c.mp4", "disk2/x.mp4"):
        assert found.covers(str(tmp_path / name))
    assert [failure.path for failure in find_videos(tmp_path / "*.mp4").failures] == [str(tmp_path / "b.mp4")]
    found = find_videos(tmp_path / "*/?.mp4")
    assert str(tmp_path / "disk") in [failure.path for failure in found.failures]
    assert found.covers(str(tmp_path / "sub/b.mp4")) and not found.covers(str(tmp_path / "disk/b.mp4"))


@pytest.mark.parametrize("name", ["b.mp4", "sub"])
def test_unreadable_videos_do_not_count_as_deleted(tmp_path, monkeypatch, name):
    touch(tmp_path, "a.mp4", "b.mp4", "sub/c.mp4")
    bad, stat = str(tmp_path / name), os.stat

    def fail(path, *args, **kwargs):
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", fail)
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == sorted({"a.mp4", "b.mp4", "sub/c.mp4"} - {name, f"{name}/c.mp4"})
    assert [(failure.path, failure.reason) for failure in found.failures] == [
        (bad, f"cannot be read ({os.strerror(errno.EIO)})")
    ]
    assert not found.covers(bad if name.endswith("mp4") else f"{bad}/c.mp4")
    assert found.covers(str(tmp_path / "d.mp4"))


def test_a_file_that_is_deleted_during_the_search_counts_as_deleted(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "b.mp4")
    stat = os.stat

    def delete(path, *args, **kwargs):
        if path == str(tmp_path / "b.mp4"):
            (tmp_path / "b.mp4").unlink()
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", delete)
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == ["a.mp4"] and not found.failures
    assert found.covers(str(tmp_path / "b.mp4"))


def test_names_that_are_not_unicode_are_failures(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / os.fsdecode(b"sub\xe9")).mkdir()
    for name in (b"\xff.mp4", b"sub\xe9/b.mp4"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == ["a.mp4"]
    assert len(found.failures) == 2 and all("UTF-8" in failure.reason for failure in found.failures)
    assert find_videos(os.fsencode(tmp_path)).videos == found.videos


def test_missing_and_empty_sources_are_refused(tmp_path, monkeypatch):
    touch(tmp_path, "full/a.mp4", "notes/a.txt")
    for sources in (tmp_path / "missing", [tmp_path / "full", tmp_path / "missing"], tmp_path / "missing/*.mp4"):
        with pytest.raises(ValueError, match="no file or folder"):
            find_videos(sources)
    for sources in (tmp_path / "notes", [tmp_path / "full", tmp_path / "notes"]):
        with pytest.raises(ValueError, match=r"notes holds no videos.* \(passed over 1 files .*: 1 txt\)"):
            find_videos(sources)
    with pytest.raises(ValueError, match="matches no videos"):
        find_videos(tmp_path / "full/*.mkv")
    for url in ("file:///videos/a.mp4", "github://org:name@main/a.mp4", "simplecache::https://host/a.mp4"):
        with pytest.raises(ValueError, match="this protocol is not read: give a path"):
            find_videos(url)
    with pytest.raises(ValueError, match="give addresses as text"):
        find_videos(Path("https://host/a.mp4"))
    touch(tmp_path, "odd:/a.mp4")  # a folder named like the scheme of a URL
    monkeypatch.chdir(tmp_path)
    assert relative_paths(tmp_path, find_videos("odd:/a.mp4")) == ["odd:/a.mp4"]


def test_unreadable_folders_are_failures(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "closed/b.mp4")
    closed, scandir = str(tmp_path / "closed"), os.scandir

    def refuse(path):
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_videos(tmp_path)
    assert relative_paths(tmp_path, found) == ["a.mp4"]
    assert [(failure.path, failure.reason) for failure in found.failures] == [
        (closed, "the folder cannot be read (Permission denied)")
    ]
    assert found.covers(str(tmp_path / "c.mp4")) and not found.covers(closed + "/b.mp4")
    with pytest.raises(ValueError, match="permission"):
        find_videos(closed)


def test_covers_paths_inside_the_sources_only(tmp_path):
    touch(tmp_path, "a/1.mp4", "b/1.mp4", "b/2.mkv")
    found = find_videos([tmp_path / "a", tmp_path / "b/*.mp4"])
    covered = ["a/2.mp4", "a/sub/3.mp4", "b/3.mp4"]
    others = ["ab/1.mp4", "b/2.mkv", "b/sub/1.mp4", "a/.x.mp4", "a/@eaDir/1.mp4", "a/1.txt", "1.mp4"]
    assert all(found.covers(str(tmp_path / name)) for name in covered)
    assert not any(found.covers(str(tmp_path / name)) for name in others)
