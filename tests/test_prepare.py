"""Test `pig prepare`: re-encoding that keeps the times of frames, the manifest, invalid options, and resumption."""

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
from .cli_helpers import assert_one_line_error
from .video_files import cut_file, numbered_frames, read_numbers, write_video


SIZES = {"train": 3, "validation": 1, "test": 2}
OPTIONS = [f"--option={split}={number}" for split, number in SIZES.items()]
STAND_IN_OPTIONS = {"msrvtt_1k": {"validation": 2}}
BENCHMARK = {"name": "moving_shapes", **SIZES, "num_threads": 2, "progress": False}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Return the videos of a tiny `moving_shapes`. Tests must not change the videos."""
    folder = tmp_path_factory.mktemp("drawn") / "videos"
    prepare_benchmark(videos=folder, output=folder.parent / "manifest", **BENCHMARK)
    return folder


@pytest.fixture
def videos(drawn, tmp_path) -> Path:
    """Return a copy of the drawn videos."""
    return shutil.copytree(drawn, tmp_path / "videos")


@pytest.fixture
def output(tmp_path) -> Path:
    """Return the path of an output folder that does not exist."""
    return tmp_path / "out"


@pytest.fixture
def prepare(videos, output):
    """Return a function that prepares the copy of the drawn videos."""
    return partial(prepare_benchmark, videos=videos, output=output, **BENCHMARK)


@pytest.fixture
def didemo(tmp_path) -> Path:
    """Write a stand-in of DiDeMo: its first test video is a folder of frames, and files have other extensions."""
    write_didemo(tmp_path / "didemo")
    return tmp_path / "didemo"


@pytest.fixture
def prepare_didemo(didemo, output):
    """Return a function that prepares the stand-in of DiDeMo."""
    folders = {"annotations": didemo / "annotations", "videos": didemo / "videos"}
    return partial(prepare_benchmark, "didemo", output=output, progress=False, **folders)


@pytest.fixture
def pig_prepare(pig, videos):
    """Return a function that runs `pig prepare` on the copy of the drawn videos with further arguments."""
    return partial(pig, "prepare", "moving_shapes", *OPTIONS, "--videos", videos, "--output", "out")


@pytest.fixture
def source(tmp_path) -> Path:
    """Return a video of 5 numbered frames."""
    return write_video(tmp_path / "in.mp4", numbered_frames(5))


def read_manifest(output: Path) -> list[ManifestEntry]:
    return [ManifestEntry(**json.loads(line)) for line in (output / "manifest.jsonl").read_text().splitlines()]


def read_problems(output: Path) -> list[dict[str, str]]:
    with open(output / "problems.csv", newline="") as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of the files in a folder, without hidden folders."""
    files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file() and ".datasets" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times_of(path: Path) -> list[float]:
    with av.open(path) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


# re-encoding one video


def test_smaller_video_keeps_frames_and_times(tmp_path):
    source = write_video(tmp_path / "in.mp4", numbered_frames(50, 120, 200))
    encode_video(source, tmp_path / "out.mp4", short_side=60)
    frames, metadata = decode_video(tmp_path / "out.mp4", 50)
    assert frames.shape == (50, 60, 100, 3)
    assert (metadata.total_num_frames, metadata.duration, metadata.fps) == (50, 2.0, 25.0)
    assert np.allclose(times_of(tmp_path / "out.mp4"), np.arange(50) / 25)
    original = decode_video(source, 50)[0]
    halved = np.stack([np.asarray(Image.fromarray(frame).resize((100, 60))) for frame in original])
    grey, expected = frames.mean(axis=3), halved.mean(axis=3)  # The encoder halves the resolution of colours.
    assert np.abs(grey - expected).mean() < 7 < 12 < np.abs(grey[1:] - expected[:-1]).mean()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((200, 120), 60, (100, 60)),
        ((120, 200), 500, (120, 200)),  # never enlarged
        ((121, 201), None, (120, 200)),
        ((120, 203), 61, (60, 102)),
    ],
)
def test_sizes_are_even_and_keep_the_aspect(tmp_path, size, short_side, expected):
    codec = "ffv1" if size[0] % 2 or size[1] % 2 else "libx264"
    source = write_video(tmp_path / "in.mkv", np.zeros((2, *size, 3), np.uint8), codec=codec)
    encode_video(source, tmp_path / "out.mp4", short_side=short_side)
    assert decode_video(tmp_path / "out.mp4", 1)[0].shape[1:3] == expected


def test_lower_frame_rate_keeps_the_times_of_frames(tmp_path):
    source = write_video(tmp_path / "in.mp4", numbered_frames(51))
    encode_video(source, tmp_path / "out.mp4", fps=3)
    frames, metadata = decode_video(tmp_path / "out.mp4", 7)
    assert metadata.total_num_frames == 7 and metadata.duration == pytest.approx(51 / 25, abs=0.001)
    kept = [0, 9, 17, 25, 34, 42, 50]  # the first frame of each third of a second
    assert read_numbers(frames) == kept
    assert np.allclose(times_of(tmp_path / "out.mp4"), np.array(kept) / 25)


@pytest.mark.parametrize("fps", [25, 60])
def test_frame_rate_is_never_raised(tmp_path, fps):
    source = write_video(tmp_path / "in.mp4", numbered_frames(20))
    encode_video(source, tmp_path / "out.mp4", fps=fps)
    frames, metadata = decode_video(tmp_path / "out.mp4", 20)
    assert metadata.fps == 25 and read_numbers(frames) == list(range(20))


def test_variable_frame_rate_keeps_its_times(tmp_path):
    pts = [0, 1, 2, 10, 11, 30, 31, 40]
    source = write_video(tmp_path / "in.mkv", numbered_frames(8), pts=pts)
    encode_video(source, tmp_path / "out.mp4")
    assert np.allclose(times_of(tmp_path / "out.mp4"), np.array(pts) / 25, atol=0.001)
    encode_video(source, tmp_path / "thin.mp4", fps=4.5)
    assert np.allclose(times_of(tmp_path / "thin.mp4"), np.array([0, 10, 30, 40]) / 25, atol=0.001)
    assert read_numbers(decode_video(tmp_path / "thin.mp4", 2, start=0.4, end=1.3)[0]) == [3, 5]


def test_one_frame_has_a_duration(source, tmp_path):
    encode_video(source, tmp_path / "out.mp4", fps=1)
    frames, metadata = decode_video(tmp_path / "out.mp4", 2, start=0.1, end=0.15)
    assert metadata.total_num_frames == 1 and metadata.duration == pytest.approx(0.2, abs=0.001)


def test_rotated_videos_are_encoded_upright(tmp_path):
    source = write_video(tmp_path / "in.mp4", numbered_frames(6, 80, 120), rotation=90)
    encode_video(source, tmp_path / "out.mp4", short_side=64)
    frames = decode_video(tmp_path / "out.mp4", 6)[0]
    assert frames.shape == (6, 64, 96, 3) and read_numbers(frames) == list(range(6))
    with av.open(tmp_path / "out.mp4") as container:
        assert next(container.decode(video=0)).rotation == 0
        assert [stream.codec_context.name for stream in container.streams] == ["h264"]


def test_damaged_video_keeps_the_previous_file(tmp_path):
    source = cut_file(write_video(tmp_path / "in.mp4", numbered_frames(60), faststart=True), 0.5)
    (tmp_path / "out.mp4").write_text("mine")
    with pytest.raises(VideoDecodingError, match="truncated"):
        encode_video(source, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "mine"


def test_unwritable_path_is_an_error(source, tmp_path):
    with pytest.raises(OSError, match="none/out.mp4 cannot be written"):
        encode_video(source, tmp_path / "none/out.mp4")


def test_link_is_replaced_and_its_target_kept(source, tmp_path):
    (tmp_path / "out.mp4").symlink_to(source)
    before = source.read_bytes()
    encode_video(source, tmp_path / "out.mp4", fps=1)
    assert source.read_bytes() == before and not (tmp_path / "out.mp4").is_symlink()


# preparing a benchmark


def test_without_settings_the_manifest_lists_the_originals(prepare, videos, output):
    before = hashes(videos)
    result = prepare()
    assert hashes(videos) == before
    assert list(hashes(output)) == ["manifest.jsonl", "problems.csv"]
    entries = read_manifest(output)
    assert entries == result.entries == result.good and result.decoding_time_ratio is None
    assert [entry.video_id for entry in entries] == sorted(entry.video_id for entry in entries)
    assert [entry.splits for entry in entries] == [["test"]] * 2 + [["train"]] * 3 + [["validation"]]
    for entry in entries:
        assert entry.video == entry.source == VideoFiles(videos).find(entry.video_id)
        assert entry.sha256 == before[os.path.relpath(entry.source, videos)]
        assert entry.bytes == entry.source_bytes == os.path.getsize(entry.source)
        assert (entry.duration, entry.fps, entry.num_frames) == (2.0, 12.0, 24)
        assert (entry.width, entry.height, entry.settings, entry.problem) == (96, 96, None, None)
    assert read_problems(output) == []


def test_smaller_videos_are_found_by_their_ids(prepare, videos, output):
    before = hashes(videos)
    result = prepare(short_side=48, fps=6)
    assert hashes(videos) == before
    assert result.decoding_time_ratio > 0
    files = VideoFiles(output)
    for entry in read_manifest(output):
        assert entry.video == f"videos/{entry.video_id}.mp4"
        assert files.find(entry.video_id) == str(output / entry.video)
        assert entry.sha256 == hashes(output)[entry.video] and entry.bytes == os.path.getsize(output / entry.video)
        assert (entry.duration, entry.fps, entry.num_frames, entry.width, entry.height) == (2.0, 6.0, 12, 48, 48)


def test_only_missing_and_changed_videos_are_prepared_again(prepare, videos, output, monkeypatch):
    encoded = []

    def count(source, target, *settings):
        encoded.append(Path(source).stem)
        encode_video(source, target, *settings)

    monkeypatch.setattr(prepare_module, "encode_video", count)

    def run(**settings) -> list[str]:
        encoded.clear()
        prepare(**{"fps": 6, **settings})
        return sorted(encoded)

    everything = run()
    assert len(everything) == 6
    first = hashes(output)
    assert run() == [] and hashes(output) == first

    os.utime(videos / "train/train_0001.mp4", (1, 1))  # a changed original
    (output / "videos/test_0001.mp4").unlink()
    (output / "videos/train_0000.mp4").write_bytes(b"cut off")
    assert run() == ["test_0001", "train_0000", "train_0001"]
    assert hashes(output / "videos") == {
        name.removeprefix("videos/"): digest for name, digest in first.items() if name.startswith("videos/")
    }
    assert run(fps=4) == run(fps=4, crf=30) == everything
    assert run(fps=4, crf=30) == []


def test_corrupt_videos_fail_and_are_retried(prepare, videos, output):
    good = (videos / "test/test_0001.mp4").read_bytes()
    (videos / "test/test_0001.mp4").write_bytes(good[: len(good) // 2])
    result = prepare(fps=6)
    (problem,) = result.failed
    assert len(result.good) == 5 and result.entries == read_manifest(output)
    assert (problem.video_id, problem.video, problem.sha256) == ("test_0001", None, None)
    assert read_problems(output) == [{"video_id": "test_0001", "split": "test", "reason": problem.problem}]
    assert VideoFiles(output).find("test_0001") is None

    (videos / "test/test_0001.mp4").write_bytes(good)
    assert prepare(fps=6).failed == []
    assert read_problems(output) == []


def rows_of(name: str, folder: Path, videos: Path) -> dict[str, list[dict]]:
    splits = load_benchmark(name, annotations=folder / "annotations", videos=videos, **STAND_IN_OPTIONS.get(name, {}))
    return {split: list(rows) for split, rows in splits.items()}


@pytest.mark.parametrize("name", ["didemo", "msrvtt_1k", "msvd"])
def test_benchmark_loads_from_its_smaller_videos(tmp_path, output, name):
    folder = tmp_path / name
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
        **STAND_IN_OPTIONS.get(name, {}),
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


def test_missing_videos_fail(prepare_didemo, didemo, output):
    shutil.rmtree(didemo / "videos/10052357@N03_7585070382_5762149bfc.")
    (didemo / "videos/10015567@N08_3655084291_d8b58466fa.mp4").write_bytes(b"junk")
    result = prepare_didemo()
    reasons = {entry.video_id: entry.problem for entry in result.failed}
    assert list(reasons) == sorted(DIDEMO["test"])
    assert "no file of this name" in reasons[DIDEMO["test"][0]] and "not a video" in reasons[DIDEMO["test"][1]]
    assert {row["split"] for row in read_problems(output)} == {"test"}


def test_output_of_another_benchmark_is_refused(prepare, prepare_didemo, output):
    prepare()
    before = hashes(output)
    with pytest.raises(ValueError, match="the videos of another benchmark"):
        prepare_didemo()
    assert hashes(output) == before


def test_folder_with_a_damaged_frame_fails(prepare_didemo, didemo, output):
    frames = didemo / "videos/10052357@N03_7585070382_5762149bfc."
    (frames / "000003.jpg").write_bytes((frames / "000003.jpg").read_bytes()[:200])
    result = prepare_didemo(short_side=32)
    (problem,) = result.failed
    assert problem.video_id == DIDEMO["test"][0] and "the frame 000003.jpg cannot be read" in problem.problem
    assert not [name for name in os.listdir(output / "videos") if "7585070382" in name]


def test_full_disk_ends_the_run_and_the_next_run_completes_it(prepare_didemo, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            prepare_didemo(fps=5)
    assert prepare_didemo(fps=5).failed == []


# the command


def test_command_prints_a_summary(pig_prepare):
    status, output, error = pig_prepare("--short-side", 48, "--fps", 6)
    assert status == 0, error
    assert output.startswith("prepared 6 of 6 videos, 12 s of video, 0.1 -> 0.0 MB, decoding takes 0.")
    assert output.endswith(" s; out/manifest.jsonl\n") and len(output.splitlines()) == 1
    assert "6/6" in error


def test_command_lists_videos_that_fail_with_escaped_names(pig_prepare, videos, tmp_path):
    (videos / "test/test_0001.mp4").write_bytes(b"junk")
    odd = videos.rename(tmp_path / "\x1b]0;title\x07\u202e")
    status, output, error = pig_prepare("--videos", odd)
    assert status == 3 and output.startswith("prepared 5 of 6 videos, 10 s of video, 0.1 MB in ")
    (line,) = [line for line in error.splitlines() if line.startswith("failed: ")]
    assert r"/\x1b]0;title\x07\u202e/test/test_0001.mp4: not a video file" in line
    assert not {"\x1b", "\x07", "\u202e"} & set(error)


def test_missing_library_is_a_one_line_error(pig_prepare, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = pig_prepare()
    assert_one_line_error(result, 'pip install "accelerate>=')


def test_run_without_decodable_videos_is_a_one_line_error(pig_prepare, videos):
    for path in videos.rglob("*.mp4"):
        path.write_bytes(b"junk")
    result = pig_prepare()
    assert_one_line_error(result, "none of the 6 videos of moving_shapes", "can be decoded")
    assert len(read_problems(Path("out"))) == 6


@pytest.mark.parametrize("output", ["..", "videos", "videos/out", "link/out", "notes.txt", "full"])
def test_output_that_would_overwrite_files_is_refused(pig_prepare, videos, tmp_path, output):
    (tmp_path / "link").symlink_to(videos)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    before = hashes(tmp_path)
    result = pig_prepare("--videos", "videos", "--output", output, "--fps", 6)
    assert_one_line_error(result, "the output", output.strip("."))
    assert hashes(tmp_path) == before


def test_originals_that_are_links_into_the_output_are_refused(pig_prepare, prepare, videos, output):
    prepare(fps=6)
    path = videos / "test/test_0000.mp4"
    path.unlink()
    path.symlink_to(output / "videos/test_0000.mp4")
    before = hashes(output)
    result = pig_prepare("--fps", 6)
    assert_one_line_error(result, "test_0000.mp4 is a link into the output")
    assert hashes(output) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--fps", 0], "fps=0"),
        (["--fps", "inf"], "fps=inf"),
        (["--option", "seed"], "key=value"),
        (["--option", "seed={"], "not YAML"),
        (["--option", "cache_dir=x"], "'cache_dir' is no option of a benchmark"),
    ],
)
def test_invalid_options_are_refused(pig_prepare, arguments, part):
    result = pig_prepare(*arguments)
    assert_one_line_error(result, part)
    assert not Path("out").exists()


def test_options_are_yaml():
    expected = {"a": 1, "b": "x=y", "c": {"test": "l.txt"}, "d": ["p", "q"], "e": None}
    assert parse_options(["a=1", "b=x=y", "c={test: 'l.txt'}", "d=[p, q]", "e="]) == expected


# interruptions


def start_command(videos: Path, output: Path, sizes: dict[str, int]) -> subprocess.Popen:
    options = [f"--option={split}={number}" for split, number in sizes.items()]
    command = [sys.executable, "-m", "modeling_pig.cli", "prepare", "moving_shapes", "--jobs", "1"]
    command += ["--videos", str(videos), "--output", str(output), "--short-side", "64", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until_started(process: subprocess.Popen, output: Path) -> None:
    partial = output / "manifest.jsonl.partial"
    while not (partial.exists() and '"video_id"' in partial.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_resumes_with_identical_files(tmp_path, output, stop, request):
    # A job in the background ignores SIGINT, and its child processes do too.
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    )
    sizes = {"train": 30, "validation": 1, "test": 1}
    settings = {"name": "moving_shapes", "short_side": 64, "progress": False, **sizes}
    videos = tmp_path / "videos"
    whole = prepare_benchmark(videos=videos, output=tmp_path / "whole", **settings)
    before = hashes(videos)

    process = start_command(videos, output, sizes)
    wait_until_started(process, output)
    os.kill(process.pid, stop)
    _, error = process.communicate(timeout=60)
    if stop == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert error.splitlines()[-1].startswith("interrupted; finished work is kept: run the same command again")
        assert "Traceback" not in error
    assert not (output / "manifest.jsonl").exists()
    done = {path: path.stat().st_mtime_ns for path in (output / "videos").glob("[!.]*.mp4")}
    assert 0 < len(done) < len(whole.entries)
    kept = (output / "manifest.jsonl.partial").read_text().count('"video_id"')
    with open(output / "manifest.jsonl.partial", "a") as file:
        file.write('{"video_id": "train_0')  # as a kill within a line leaves it

    prepare_benchmark(videos=videos, output=output, **settings)
    assert sum(path.stat().st_mtime_ns == time for path, time in done.items()) == kept
    assert (output / "manifest.jsonl").read_text() == (tmp_path / "whole/manifest.jsonl").read_text()
    assert hashes(output) == hashes(tmp_path / "whole")
    assert not list((output / "videos").glob(".*"))  # partial files
    assert hashes(videos) == before
