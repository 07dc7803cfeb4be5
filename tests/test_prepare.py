"""A benchmark's videos made ready: checks, smaller copies with true times, manifest, `pig prepare`, resumption."""

import csv
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from modeling_pig.benchmarks import load_benchmark
from modeling_pig.benchmarks import prepare as prepare_module
from modeling_pig.benchmarks.prepare import ManifestEntry, parse_options, prepare_benchmark
from modeling_pig.benchmarks.reencode import encode_video
from modeling_pig.benchmarks.video_files import VideoFiles
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video

from .benchmark_stand_ins import DIDEMO, WRITERS, write_didemo
from .cli_helpers import assert_one_line_error, pig  # noqa: F401 - a fixture
from .video_files import cut_file, numbered_frames, read_numbers, write_video


SIZES = {"train": 3, "validation": 1, "test": 2}
OPTIONS = [f"--option={split}={number}" for split, number in SIZES.items()]
FURTHER = {"msrvtt_1k": {"validation": 2}}  # options of a stand-in
BENCHMARK = {"name": "moving_shapes", **SIZES, "num_threads": 2, "progress": False}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The videos of a tiny moving_shapes, not to be changed."""
    folder = tmp_path_factory.mktemp("drawn") / "videos"
    prepare_benchmark(videos=folder, output=folder.parent / "manifest", **BENCHMARK)
    return folder


@pytest.fixture
def videos(drawn, tmp_path) -> Path:
    return shutil.copytree(drawn, tmp_path / "videos")


def read_manifest(output: Path) -> list[ManifestEntry]:
    return [ManifestEntry(**json.loads(line)) for line in (output / "manifest.jsonl").read_text().splitlines()]


def read_problems(output: Path) -> list[dict[str, str]]:
    with open(output / "problems.csv", newline="") as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[str, str]:
    """Of the files in a folder, hidden folders apart."""
    files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file() and ".datasets" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times_of(path: Path) -> list[float]:
    with av.open(path) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


# one video made smaller


def test_the_frames_of_a_smaller_video(tmp_path):
    source = write_video(tmp_path / "in.mp4", numbered_frames(50, 120, 200))
    encode_video(source, tmp_path / "out.mp4", short_side=60)
    frames, metadata = decode_video(tmp_path / "out.mp4", 50)
    assert frames.shape == (50, 60, 100, 3)
    assert (metadata.total_num_frames, metadata.duration, metadata.fps) == (50, 2.0, 25.0)
    assert np.allclose(times_of(tmp_path / "out.mp4"), np.arange(50) / 25)
    original = decode_video(source, 50)[0]
    halved = np.stack([np.asarray(Image.fromarray(frame).resize((100, 60))) for frame in original])
    grey, expected = frames.mean(axis=3), halved.mean(axis=3)  # Half of the colours' resolution is lost.
    assert np.abs(grey - expected).mean() < 7 < 12 < np.abs(grey[1:] - expected[:-1]).mean()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((120, 200), 60, (60, 100)),
        ((200, 120), 60, (100, 60)),
        ((120, 200), 120, (120, 200)),
        ((120, 200), 500, (120, 200)),  # never larger
        ((121, 201), None, (120, 200)),
        ((120, 203), 61, (60, 102)),
        ((90, 160), 45, (44, 78)),
    ],
)
def test_sizes_are_even_and_keep_the_aspect(tmp_path, size, short_side, expected):
    codec = "ffv1" if size[0] % 2 or size[1] % 2 else "libx264"
    source = write_video(tmp_path / "in.mkv", np.zeros((2, *size, 3), np.uint8), codec=codec)
    encode_video(source, tmp_path / "out.mp4", short_side=short_side)
    assert decode_video(tmp_path / "out.mp4", 1)[0].shape[1:3] == expected


def test_a_lower_frame_rate_keeps_frames_with_their_own_times(tmp_path):
    source = write_video(tmp_path / "in.mp4", numbered_frames(51))
    encode_video(source, tmp_path / "out.mp4", fps=3)
    frames, metadata = decode_video(tmp_path / "out.mp4", 7)
    assert metadata.total_num_frames == 7 and metadata.duration == pytest.approx(51 / 25, abs=0.001)
    kept = [0, 9, 17, 25, 34, 42, 50]  # the first one of each third of a second
    assert read_numbers(frames) == kept
    assert np.allclose(times_of(tmp_path / "out.mp4"), np.array(kept) / 25)


@pytest.mark.parametrize("fps", [25, 25.5, 60])
def test_the_frame_rate_is_never_raised(tmp_path, fps):
    source = write_video(tmp_path / "in.mp4", numbered_frames(20))
    encode_video(source, tmp_path / "out.mp4", fps=fps)
    frames, metadata = decode_video(tmp_path / "out.mp4", 20)
    assert metadata.fps == 25 and read_numbers(frames) == list(range(20))


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    pts = [0, 1, 2, 10, 11, 30, 31, 40]
    source = write_video(tmp_path / "in.mkv", numbered_frames(8), pts=pts)
    encode_video(source, tmp_path / "out.mp4")
    assert np.allclose(times_of(tmp_path / "out.mp4"), np.array(pts) / 25, atol=0.001)
    encode_video(source, tmp_path / "thin.mp4", fps=4.5)
    assert np.allclose(times_of(tmp_path / "thin.mp4"), np.array([0, 10, 30, 40]) / 25, atol=0.001)
    assert read_numbers(decode_video(tmp_path / "thin.mp4", 2, start=0.4, end=1.3)[0]) == [3, 5]


def test_one_frame_has_a_duration(tmp_path):
    encode_video(write_video(tmp_path / "in.mp4", numbered_frames(5)), tmp_path / "out.mp4", fps=1)
    frames, metadata = decode_video(tmp_path / "out.mp4", 2, start=0.1, end=0.15)
    assert metadata.total_num_frames == 1 and metadata.duration == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_comes_out_upright(tmp_path, rotation):
    source = write_video(tmp_path / "in.mp4", numbered_frames(6, 80, 120), rotation=rotation)
    encode_video(source, tmp_path / "out.mp4", short_side=64)
    frames = decode_video(tmp_path / "out.mp4", 6)[0]
    assert frames.shape == (6, 64, 96, 3) and read_numbers(frames) == list(range(6))
    with av.open(tmp_path / "out.mp4") as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize(("name", "codec"), [("in.avi", "mpeg4"), ("in.webm", "libvpx-vp9"), ("in.avi", "libx264")])
def test_other_containers(tmp_path, name, codec):
    encode_video(write_video(tmp_path / name, numbered_frames(30), codec=codec), tmp_path / "out.mp4")
    frames, metadata = decode_video(tmp_path / "out.mp4", 30)
    assert read_numbers(frames) == list(range(30)) and metadata.fps == pytest.approx(25, abs=0.01)
    with av.open(tmp_path / "out.mp4") as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264"]


def test_a_damaged_video_leaves_what_was_there(tmp_path):
    source = cut_file(write_video(tmp_path / "in.mp4", numbered_frames(60), faststart=True), 0.5)
    (tmp_path / "out.mp4").write_text("mine")
    with pytest.raises(VideoDecodingError, match="truncated"):
        encode_video(source, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "mine"


def test_a_place_that_cannot_be_written(tmp_path):
    source = write_video(tmp_path / "in.mp4", numbered_frames(5))
    with pytest.raises(OSError, match="none/out.mp4 cannot be written"):
        encode_video(source, tmp_path / "none/out.mp4")


# a benchmark


def test_a_check_alone_lists_the_originals(videos, tmp_path):
    before = hashes(videos)
    result = prepare_benchmark(videos=videos, output=tmp_path / "out", **BENCHMARK)
    assert hashes(videos) == before
    assert list(hashes(tmp_path / "out")) == ["manifest.jsonl", "problems.csv"]
    entries = read_manifest(tmp_path / "out")
    assert entries == result.entries == result.good and result.decoding_time_ratio is None
    assert [entry.video_id for entry in entries] == sorted(entry.video_id for entry in entries)
    assert [entry.splits for entry in entries] == [["test"]] * 2 + [["train"]] * 3 + [["validation"]]
    for entry in entries:
        assert entry.video == entry.source == VideoFiles(videos).find(entry.video_id)
        assert entry.sha256 == before[os.path.relpath(entry.source, videos)]
        assert entry.bytes == entry.source_bytes == os.path.getsize(entry.source)
        assert (entry.duration, entry.fps, entry.num_frames) == (2.0, 12.0, 24)
        assert (entry.width, entry.height, entry.settings, entry.problem) == (96, 96, None, None)
    assert read_problems(tmp_path / "out") == []


def test_smaller_videos_are_found_by_their_ids(videos, tmp_path):
    before = hashes(videos)
    output = tmp_path / "out"
    result = prepare_benchmark(videos=videos, output=output, short_side=48, fps=6, **BENCHMARK)
    assert hashes(videos) == before
    assert result.decoding_time_ratio > 0
    files = VideoFiles(output)
    for entry in read_manifest(output):
        assert entry.video == f"videos/{entry.video_id}.mp4"
        assert files.find(entry.video_id) == str(output / entry.video)
        assert entry.sha256 == hashes(output)[entry.video] and entry.bytes == os.path.getsize(output / entry.video)
        assert (entry.duration, entry.fps, entry.num_frames, entry.width, entry.height) == (2.0, 6.0, 12, 48, 48)


def test_what_is_done_is_not_done_again(videos, tmp_path, monkeypatch):
    encoded = []

    def counted(source, target, *settings):
        encoded.append(Path(source).stem)
        encode_video(source, target, *settings)

    monkeypatch.setattr(prepare_module, "encode_video", counted)
    output = tmp_path / "out"

    def run(**settings) -> list[str]:
        encoded.clear()
        prepare_benchmark(videos=videos, output=output, **{"fps": 6, **BENCHMARK, **settings})
        return sorted(encoded)

    everything = run()
    assert len(everything) == 6
    first = hashes(output)
    assert run() == [] and hashes(output) == first

    os.utime(videos / "train/train_0001.mp4", (1, 1))  # another original
    (output / "videos/test_0001.mp4").unlink()
    (output / "videos/train_0000.mp4").write_bytes(b"cut off")
    assert run() == ["test_0001", "train_0000", "train_0001"]
    assert hashes(output / "videos") == {
        name.removeprefix("videos/"): digest for name, digest in first.items() if name.startswith("videos/")
    }
    assert run(fps=4) == run(fps=4, crf=30) == everything
    assert run(fps=4, crf=30) == []


def test_corrupt_videos_are_set_aside_and_tried_again(videos, tmp_path):
    output = tmp_path / "out"
    good = (videos / "test/test_0001.mp4").read_bytes()
    (videos / "test/test_0001.mp4").write_bytes(good[: len(good) // 2])
    result = prepare_benchmark(videos=videos, output=output, fps=6, **BENCHMARK)
    (problem,) = result.failed
    assert len(result.good) == 5 and result.entries == read_manifest(output)
    assert (problem.video_id, problem.video, problem.sha256) == ("test_0001", None, None)
    assert read_problems(output) == [{"video_id": "test_0001", "split": "test", "reason": problem.problem}]
    assert VideoFiles(output).find("test_0001") is None

    (videos / "test/test_0001.mp4").write_bytes(good)
    assert prepare_benchmark(videos=videos, output=output, fps=6, **BENCHMARK).failed == []
    assert read_problems(output) == []


@pytest.fixture
def didemo(tmp_path) -> Path:
    """Its first test video is a folder of frames, and the ids end in extensions that the files do not have."""
    write_didemo(tmp_path / "didemo")
    return tmp_path / "didemo"


def rows_of(name: str, folder: Path, videos: Path) -> dict[str, list[dict]]:
    splits = load_benchmark(name, annotations=folder / "annotations", videos=videos, **FURTHER.get(name, {}))
    return {split: list(rows) for split, rows in splits.items()}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_benchmark_loads_from_its_smaller_videos(tmp_path, name):
    folder, output = tmp_path / name, tmp_path / "out"
    WRITERS[name](folder)
    original = rows_of(name, folder, folder / "videos")
    before = hashes(folder)
    for path in (folder / "videos").iterdir():
        path.chmod(0o555 if path.is_dir() else 0o444)
    result = prepare_benchmark(
        name,
        annotations=folder / "annotations",
        videos=folder / "videos",
        output=output,
        short_side=32,
        progress=False,
        **FURTHER.get(name, {}),
    )
    assert hashes(folder) == before
    assert result.failed == [] and len(result.good) == sum(map(len, original.values()))
    smaller = rows_of(name, folder, output)
    for split, rows in original.items():
        for row, new in zip(rows, smaller[split], strict=True):
            assert new["video"].startswith(f"{output}/videos/{row['video_id']}")
            assert {**new, "video": ""} == {**row, "video": ""}
            frames = [decode_video(r["video"], 4, start=r["start"], end=r["end"])[0] for r in (row, new)]
            assert frames[0].shape[1:3] == (64, 96) and frames[1].shape[1:3] == (32, 48)
            assert read_numbers(frames[0]) == read_numbers(frames[1].repeat(2, axis=1).repeat(2, axis=2))


def test_missing_videos_are_set_aside(didemo, tmp_path):
    shutil.rmtree(didemo / "videos/10052357@N03_7585070382_5762149bfc.")
    (didemo / "videos/10015567@N08_3655084291_d8b58466fa.mp4").write_bytes(b"junk")
    result = prepare_benchmark(
        "didemo", annotations=didemo / "annotations", videos=didemo / "videos", output=tmp_path / "out", progress=False
    )
    reasons = {entry.video_id: entry.problem for entry in result.failed}
    assert list(reasons) == sorted(DIDEMO["test"])
    assert "no file of this name" in reasons[DIDEMO["test"][0]] and "not a video" in reasons[DIDEMO["test"][1]]
    assert {row["split"] for row in read_problems(tmp_path / "out")} == {"test"}


def test_one_output_is_not_for_two_benchmarks(videos, didemo, tmp_path):
    prepare_benchmark(videos=videos, output=tmp_path / "out", **BENCHMARK)
    before = hashes(tmp_path / "out")
    with pytest.raises(ValueError, match="the videos of another benchmark"):
        prepare_benchmark(
            "didemo", annotations=didemo / "annotations", videos=didemo / "videos", output=tmp_path / "out"
        )
    assert hashes(tmp_path / "out") == before


def test_a_damaged_frame_sets_its_folder_aside(didemo, tmp_path):
    frames = didemo / "videos/10052357@N03_7585070382_5762149bfc."
    (frames / "000003.jpg").write_bytes((frames / "000003.jpg").read_bytes()[:200])
    result = prepare_benchmark(
        "didemo",
        annotations=didemo / "annotations",
        videos=didemo / "videos",
        output=tmp_path / "out",
        short_side=32,
        progress=False,
    )
    (problem,) = result.failed
    assert problem.video_id == DIDEMO["test"][0] and "the frame 000003.jpg cannot be read" in problem.problem
    assert not [name for name in os.listdir(tmp_path / "out/videos") if "7585070382" in name]


def test_a_full_disk_ends_the_run_and_is_no_fault_of_a_video(didemo, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    files = {"annotations": didemo / "annotations", "videos": didemo / "videos"}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            prepare_benchmark("didemo", output=tmp_path / "out", fps=5, progress=False, **files)
    assert prepare_benchmark("didemo", output=tmp_path / "out", fps=5, progress=False, **files).failed == []


# the command


def test_the_command(pig, videos, tmp_path):  # noqa: F811
    status, output, error = pig(
        "prepare", "moving_shapes", "--videos", videos, "--output", "out", "--short-side", 48, "--fps", 6, *OPTIONS
    )
    assert status == 0, error
    assert output.startswith("prepared 6 of 6 videos, 12 s of video, 0.1 -> 0.0 MB, decoding takes 0.")
    assert output.endswith(" s; out/manifest.jsonl\n") and len(output.splitlines()) == 1
    assert "6/6" in error


def test_the_command_names_what_it_sets_aside(pig, videos):  # noqa: F811
    (videos / "test/test_0001.mp4").write_bytes(b"junk")
    status, output, error = pig("prepare", "moving_shapes", "--videos", videos, "--output", "out", *OPTIONS)
    assert status == 3 and output.startswith("prepared 5 of 6 videos, 10 s of video, 0.1 MB in ")
    (line,) = [line for line in error.splitlines() if line.startswith("set aside: ")]
    assert "test_0001.mp4: not a video file" in line


def test_file_names_cannot_command_a_terminal(pig, videos, tmp_path):  # noqa: F811
    (videos / "test/test_0001.mp4").write_bytes(b"junk")
    odd = videos.rename(tmp_path / "\x1b]0;title\x07\u202e")
    _, _, error = pig("prepare", "moving_shapes", "--videos", odd, "--output", "out", *OPTIONS)
    assert r"/\x1b]0;title\x07\u202e/test/test_0001.mp4: not a video file" in error
    assert not {"\x1b", "\x07", "\u202e"} & set(error)


def test_a_missing_library(pig, videos, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = pig("prepare", "moving_shapes", "--videos", videos, "--output", "out", *OPTIONS)
    assert_one_line_error(result, 'pip install "modeling-pig[train]"')


def test_nothing_good(pig, videos):  # noqa: F811
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"junk")
    result = pig("prepare", "moving_shapes", "--videos", videos, "--output", "out", *OPTIONS)
    assert_one_line_error(result, "none of the 6 videos of moving_shapes", "can be decoded")
    assert len(read_problems(Path("out"))) == 6


@pytest.mark.parametrize("output", ["..", "videos", "videos/out", "link/out", "notes.txt", "full"])
def test_an_output_that_would_overwrite_something(pig, videos, tmp_path, output):  # noqa: F811
    (tmp_path / "link").symlink_to(videos)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    before = hashes(tmp_path)
    result = pig("prepare", "moving_shapes", "--videos", "videos", "--output", output, "--fps", 6, *OPTIONS)
    assert_one_line_error(result, "the output", output.strip("."))
    assert hashes(tmp_path) == before


def test_originals_that_are_links_into_the_output(pig, videos, tmp_path):  # noqa: F811
    prepare_benchmark(videos=videos, output=tmp_path / "out", fps=6, **BENCHMARK)
    path = videos / "test/test_0000.mp4"
    path.unlink()
    path.symlink_to(tmp_path / "out/videos/test_0000.mp4")
    before = hashes(tmp_path / "out")
    result = pig("prepare", "moving_shapes", "--videos", videos, "--output", "out", "--fps", 6, *OPTIONS)
    assert_one_line_error(result, "test_0000.mp4 is a link into the output")
    assert hashes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--fps", 0], "fps=0"),
        (["--fps", "inf"], "fps=inf"),
        (["--fps", "nan"], "fps=nan"),
        (["--option", "seed"], "key=value"),
        (["--option", "seed={"], "not YAML"),
        (["--option", "cache_dir=x"], "'cache_dir' is no option of a benchmark"),
        (["--option", "fps=5"], "'fps' is no option of a benchmark"),
        (["--option", "with_videos=true"], "'with_videos' is no option of a benchmark"),
    ],
)
def test_options_that_make_no_sense(pig, videos, arguments, part):  # noqa: F811
    result = pig("prepare", "moving_shapes", "--videos", videos, "--output", "out", *OPTIONS, *arguments)
    assert_one_line_error(result, part)
    assert not Path("out").exists()


def test_options_are_yaml():
    assert parse_options(["a=1", "b=x=y", "c={test: 'l.txt'}", "d=[p, q]", "e="]) == {
        "a": 1,
        "b": "x=y",
        "c": {"test": "l.txt"},
        "d": ["p", "q"],
        "e": None,
    }


# interruptions


def start_command(videos: Path, output: Path, sizes: dict[str, int]) -> subprocess.Popen:
    options = [f"--option={split}={number}" for split, number in sizes.items()]
    command = [sys.executable, "-m", "modeling_pig.cli", "prepare", "moving_shapes", "--jobs", "1"]
    command += ["--videos", str(videos), "--output", str(output), "--short-side", "64", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until_begun(process: subprocess.Popen, output: Path) -> None:
    partial = output / "manifest.jsonl.partial"
    while not (partial.exists() and '"video_id"' in partial.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, stop, request):
    # A job that was started in the background ignores SIGINT, and so would the command.
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    )
    sizes = {"train": 30, "validation": 1, "test": 1}
    settings = {"name": "moving_shapes", "short_side": 64, "progress": False, **sizes}
    videos, output = tmp_path / "videos", tmp_path / "out"
    whole = prepare_benchmark(videos=videos, output=tmp_path / "whole", **settings)
    before = hashes(videos)

    process = start_command(videos, output, sizes)
    wait_until_begun(process, output)
    os.kill(process.pid, stop)
    _, error = process.communicate(timeout=60)
    if stop == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert error.splitlines()[-1].startswith("stopped; what is done is kept, and the same command goes on")
        assert "Traceback" not in error
    assert not (output / "manifest.jsonl").exists()
    done = {path: path.stat().st_mtime_ns for path in (output / "videos").glob("[!.]*.mp4")}
    assert 0 < len(done) < len(whole.entries)
    kept = (output / "manifest.jsonl.partial").read_text().count('"video_id"')
    with open(output / "manifest.jsonl.partial", "a") as file:
        file.write('{"video_id": "train_0')  # as a kill in the middle of a line would leave it

    prepare_benchmark(videos=videos, output=output, **settings)
    assert sum(path.stat().st_mtime_ns == time for path, time in done.items()) == kept
    assert (output / "manifest.jsonl").read_text() == (tmp_path / "whole/manifest.jsonl").read_text()
    assert hashes(output) == hashes(tmp_path / "whole")  # and nothing is left over
    assert hashes(videos) == before
