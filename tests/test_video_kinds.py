"""Every kind of video of `tests/videos` comes out as a player shows it, through every reader."""

import json
import re
import subprocess
import sys
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_pig import PigVideoProcessor, video_decoding_pig
from modeling_pig.stores.index import VideoIndex
from modeling_pig.training.data import BatchItem, VideoTextDataset
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from modeling_pig.video_file_pig import VideoDecodingWarning
from modeling_pig.video_torchcodec_pig import find_torchcodec

from .video_files import read_numbers, write_video
from .videos.kinds import COLOURS, KINDS, NUMBERED


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Return a function that draws a kind once, and returns its path."""
    folder = tmp_path_factory.mktemp("kinds")

    def draw(kind):
        path = folder / kind.file
        if not path.exists():
            kind.draw(path)
        return path

    return draw


def assert_shows(kind, frames: np.ndarray) -> None:
    if kind.numbers is not None:
        assert read_numbers(frames) == kind.numbers
    if kind.quadrants is not None:
        height, width = frames.shape[1:3]
        shown = frames[0][[height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]].reshape(4, 3)
        expected = np.array([COLOURS[letter] for letter in kind.quadrants])
        assert np.abs(shown.astype(int) - expected).max() <= 20, shown


@pytest.fixture(scope="session")
def torchcodec():
    """Return `torchcodec.decoders`, or skip the test."""
    try:
        return find_torchcodec("torchcodec")
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_video_is_decoded_as_a_player_shows_it(corpus, kind):
    path = corpus(kind)
    expected = pytest.warns(VideoDecodingWarning, match=kind.warning) if kind.warning else nullcontext()
    if kind.error:
        with pytest.raises(VideoDecodingError, match=kind.error):
            decode_video(path, 4, sampling="time")
        return
    with expected, warnings.catch_warnings() if not kind.warning else nullcontext():
        if not kind.warning:
            warnings.simplefilter("error")
        frames, metadata = decode_video(path, 4, sampling="time")
    assert_shows(kind, frames)
    if kind.num_frames is not None:
        assert metadata.total_num_frames == kind.num_frames
    if kind.seconds is not None:
        assert metadata.duration == pytest.approx(kind.seconds, abs=0.11)
    [(again, _)] = decode_segments(path, 4, lambda duration: [(None, None)], sampling="time")
    assert np.array_equal(again, frames)


# Kinds whose frames torchcodec decodes; PyAV decodes the others.
OF_TORCHCODEC = {
    *(f"plain.{suffix}" for suffix in ("mp4", "m4v", "mov", "mkv", "flv", "3gp", "mxf", "wmv", "asf", "webm", "ogv")),
    *("variable_rate.mp4", "variable_rate.mkv", "sound_with_few_pictures.mp4", "late.mp4", "late.mkv", "endless.mp4"),
    *("zero_matrix.mp4", "still_first.mp4", "still_first.mkv", "preview_first.mp4", "two_angles.mkv"),
}
OF_PYAV = {
    "plain.avi",
    "plain.gif",
    "clock_restarts.ts",
    "clock_jumps.ts",
    "hdr_pq.mp4",
    "hdr_hlg.mp4",
    "size_changes.ts",
}
OF_PYAV |= {"mirrored.mp4", "flipped.mp4", "rotated.mp4", "transposed.mp4", "transparent.mov"}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_torchcodec_shows_the_same_frames_as_pyav(torchcodec, corpus, kind):
    path = corpus(kind)
    if kind.error:
        with pytest.raises(VideoDecodingError, match=kind.error):
            decode_video(path, 4, sampling="time", decoder="torchcodec")
        return
    with pytest.warns(VideoDecodingWarning, match=kind.warning) if kind.warning else nullcontext():
        frames, metadata = decode_video(path, 4, sampling="time", decoder="torchcodec")
        expected, of_pyav = decode_video(path, 4, sampling="time")
    assert_shows(kind, frames)
    assert metadata.frames_indices == of_pyav.frames_indices and metadata.duration == of_pyav.duration
    assert np.abs(frames.astype(int) - expected).max() <= 8  # rounding of colours by another FFmpeg, or by a GPU
    if kind.file in OF_TORCHCODEC | OF_PYAV:
        assert metadata.video_backend == ("torchcodec" if kind.file in OF_TORCHCODEC else "pyav")


class FailsAtFrame:
    """Stand-in for a `VideoDecoder` that fails, or decodes a wrong frame, from the frame `number` on."""

    def __init__(self, frames, metadata, time_base: float, number: int, is_wrong: bool):
        self.frames, self.metadata, self.time_base = frames, metadata, time_base
        self.number, self.is_wrong = number, is_wrong

    def get_frame_at(self, index: int) -> SimpleNamespace:
        if index >= self.number and not self.is_wrong:
            raise RuntimeError("Could not push packet to decoder")
        shown = index + (index >= self.number)
        return SimpleNamespace(data=torch.from_numpy(self.frames[index]), pts_seconds=shown * self.time_base)


@pytest.mark.parametrize("is_wrong", [False, True])
@pytest.mark.parametrize(
    "number, backends", [(0, ["pyav"] * 2), (60, ["torchcodec", "pyav"]), (100, ["torchcodec"] * 2)]
)
def test_pyav_continues_where_torchcodec_fails(corpus, monkeypatch, number, backends, is_wrong):
    path = corpus(next(kind for kind in KINDS if kind.file == "plain.mp4"))
    facts = SimpleNamespace(
        pixel_format="yuv420p",
        rotation=None,
        width=96,
        height=64,
        color_primaries=None,
        color_transfer_characteristic=None,
    )
    marked = 255 - NUMBERED

    def open_decoder(source, custom_frame_mappings, **settings):
        pts = [frame["pts"] for frame in json.loads(custom_frame_mappings)["frames"]]
        assert len(pts) == 100 and source == f"file:{path}" and settings["stream_index"] == 0
        return FailsAtFrame(marked, facts, 0.04, number, is_wrong)

    stand_in = SimpleNamespace(VideoDecoder=open_decoder)
    monkeypatch.setattr(video_decoding_pig, "find_torchcodec", lambda decoder: stand_in)
    segments = list(decode_segments(path, 3, lambda duration: [(0, 2), (2, 4)], decoder="torchcodec"))
    assert [metadata.video_backend for _, metadata in segments] == backends
    for (frames, _), backend, expected in zip(segments, backends, ([0, 24, 49], [50, 74, 99]), strict=True):
        assert read_numbers(255 - frames if backend == "torchcodec" else frames) == expected


def test_the_decoder_of_a_machine_is_not_saved(tmp_path):
    PigVideoProcessor(decoder="torchcodec").save_pretrained(tmp_path)
    assert PigVideoProcessor.from_pretrained(tmp_path).decoder == "pyav"


def test_decoder_is_checked(corpus, monkeypatch, pig, model_folder):
    path = corpus(next(kind for kind in KINDS if kind.file == "plain.mp4"))
    with pytest.raises(ValueError, match="decoder must be one of pyav, torchcodec, auto; got 'opencv'"):
        decode_video(path, 4, decoder="opencv")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match="pip install torchcodec"):
        PigVideoProcessor(num_frames=4)(str(path), decoder="torchcodec")
    assert decode_video(path, 4, decoder="auto")[1].video_backend == "pyav"
    status, _, error = pig("index", path, "--model", model_folder, "--index", "a.lance", "--decoder", "torchcodec")
    assert status == 1 and "pip install torchcodec" in error


@pytest.mark.parametrize("sampling", ["time", "index"])
@pytest.mark.parametrize("file", ["plain.mp4", "late.mp4", "variable_rate.mp4", "plain.webm"])
def test_a_torchcodec_decoder_gives_the_frames_of_its_file(torchcodec, corpus, file, sampling):
    path = corpus(next(kind for kind in KINDS if kind.file == file))
    processor = PigVideoProcessor(size={"height": 64, "width": 96}, num_frames=4, frame_sampling=sampling)
    of_file = processor(str(path), return_tensors="pt")["pixel_values_videos"]
    of_decoder = processor(torchcodec.VideoDecoder(path), return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(of_decoder, of_file, rtol=0, atol=8 / 255 / 0.26)  # 8 of 255 levels, normalised


def test_training_and_evaluation_read_the_same_pictures(corpus):
    """Training draws frames near those of evaluation; quadrants do not change in time."""
    kinds = [kind for kind in KINDS if kind.quadrants]
    rows = [{"video_id": kind.file, "video": str(corpus(kind)), "captions": ["a video"]} for kind in kinds]
    processor = PigVideoProcessor(size={"height": 32, "width": 32}, num_frames=4)
    dataset = VideoTextDataset(rows, processor, seed=0)
    for position, kind in enumerate(kinds):
        sample = dataset[BatchItem(0, tuple(range(len(rows))), position)]
        assert_shows(kind, sample[0].permute(0, 2, 3, 1).numpy())
        assert_shows(kind, processor.fetch_videos(rows[position]["video"])[0])


def test_index_of_all_kinds(corpus, pig, model_folder):
    """One folder of all kinds: the readable ones are indexed, the others fail with their reason, and cut ones warn."""
    folder = {corpus(kind).parent for kind in KINDS}.pop()
    status, output, error = pig("index", folder, "--model", model_folder, "--index", "kinds.lance", "--segment", "0")
    failing = [kind for kind in KINDS if kind.error]
    assert status == 3 and f"indexed {len(KINDS) - len(failing)}" in output.lower(), (output, error)
    failed = [line for line in error.splitlines() if line.startswith("failed: ")]
    assert len(failed) == len(failing)
    for kind in failing:
        assert any(re.search(f"{re.escape(kind.file)}: {kind.error}", line) for line in failed), failed
    for kind in KINDS:
        warned = re.search(f"warning: .*/{re.escape(kind.file)}: {kind.warning}", error)
        assert bool(warned) == bool(kind.warning), kind
    index = VideoIndex("kinds.lance")
    for kind in KINDS:
        if kind.seconds is not None:
            [entry] = index.get(str(folder / kind.file))
            assert entry.entry.duration == pytest.approx(kind.seconds, abs=0.11), kind


def test_segments_of_a_late_video_are_those_of_the_player(corpus):
    """The video starts after 2 s of sound."""
    path = corpus(next(kind for kind in KINDS if kind.file == "late.mp4"))
    segments = [(0, 2), (2, 4), (4, 6)]
    shown = [read_numbers(frames) for frames, _ in decode_segments(path, 2, lambda duration: segments)]
    assert shown == [[0, 0], [0, 49], [50, 99]]


def test_a_segment_of_a_video_with_variable_frame_rate_starts_with_the_displayed_frame(corpus):
    path = corpus(next(kind for kind in KINDS if kind.file == "variable_rate.mp4"))
    frames, _ = decode_video(path, 3, start=15, end=45, sampling="time")
    assert read_numbers(frames) == [1, 3, 4]
    frames, _ = decode_video(path, 3, start=15, end=45, sampling="index")  # frames that begin in the segment
    assert read_numbers(frames) == [2, 3, 4]


MEASURE = """
import resource, sys
from modeling_pig import PigVideoProcessor
from modeling_pig.video_decoding_pig import decode_video, import_av
av, path = import_av(), sys.argv[1]
def decode():
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
processor = PigVideoProcessor()
processor.resize_frame(__import__("numpy").zeros((64, 64, 3), "uint8"))
decode()
before = peak()
decode_video(path, 4, sampling="time", transform=processor.resize_frame)
print(peak() - before)
"""


def test_memory_of_8k_videos_is_bounded(tmp_path):
    """At most 100 MB per thread in addition to what FFmpeg's decoder holds."""
    path = tmp_path / "8k.mp4"
    still = np.full((4320, 7680, 3), 128, np.uint8)
    write_video(path, np.broadcast_to(still, (4, *still.shape)), options={"preset": "ultrafast"})
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 100
