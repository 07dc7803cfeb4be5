"""Every kind of video of `tests/videos` comes out as a player shows it, through every reader."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest

from modeling_pig.video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from modeling_pig.video_file_pig import VideoDecodingWarning

from .video_files import read_numbers
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
