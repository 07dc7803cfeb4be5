"""Every kind of video of `tests/videos` comes out as a player shows it, through every reader."""

import re
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest

from modeling_pig import PigVideoProcessor
from modeling_pig.stores.index import VideoIndex
from modeling_pig.training.data import BatchItem, VideoTextDataset
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from modeling_pig.video_file_pig import VideoDecodingWarning

from .video_files import read_numbers, write_video
from .videos.kinds import COLOURS, KINDS


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
    frames, _ = decode_video(path, 3, start=15, end=45)  # by index: frames that begin in the segment
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
