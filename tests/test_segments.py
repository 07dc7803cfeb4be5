"""Test how videos are split into segments, and that one pass decodes the same frames as a call per segment."""

import itertools

import numpy as np
import pytest

from modeling_pig import video_file_pig
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from tests.video_files import cut_file, numbered_frames, read_numbers, write_frame_folder, write_video


WHOLE = [(None, None)]


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (None, WHOLE),
        (60, WHOLE),
        (74.9, [(0, 30), (30, 74.9)]),
        (75, [(0, 30), (30, 60), (60, 75)]),
    ],
)
def test_by_default_videos_of_a_minute_are_one_segment(duration, expected):
    assert Segmentation().split(duration) == expected


@pytest.mark.parametrize(
    ("length", "overlap", "duration", "expected"),
    [
        (10, 0, 14.9, WHOLE),
        (10, 0, 15, [(0, 10), (10, 15)]),
        (10, 4, 12.9, WHOLE),  # a step is 6 s
        (10, 4, 13, [(0, 10), (6, 13)]),
        (10, 4, 25, [(0, 10), (6, 16), (12, 22), (18, 25)]),
        (0, 0, 100_000, WHOLE),
        (1 / 3, 0, 1, [(0, 0.333), (0.333, 0.667), (0.667, 1)]),
    ],
)
def test_split_into_segments(length, overlap, duration, expected):
    assert Segmentation(length, overlap).split(duration) == expected


def test_segments_cover_a_video_and_none_is_short():
    for overlap, duration in itertools.product([0, 3, 9], np.arange(10.5, 60, 0.37)):
        segments = Segmentation(10, overlap).split(duration)
        if segments == WHOLE:
            assert duration < 10 + (10 - overlap) / 2
            continue
        assert segments[0][0] == 0 and segments[-1][1] == pytest.approx(duration, abs=1e-3)
        for (start, end), (next_start, next_end) in zip(segments, segments[1:], strict=False):
            assert next_start - start == 10 - overlap and end - start == 10
            assert next_end - end >= (10 - overlap) / 2 - 1e-3


def test_invalid_lengths_are_refused():
    for arguments in [(-1,), (float("nan"),), (float("inf"),), (10, -1), (10, 10), (9, 8.95), (0, 1)]:
        with pytest.raises(ValueError, match=r"[Ss]egment"):
            Segmentation(*arguments)


@pytest.fixture(scope="module")
def frames():
    return numbered_frames(200)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("one_key_frame.mp4", "libx264", {"g": "1000"}),
        ("b_frames.mkv", "libx264", {"bf": "3", "g": "25"}),
        ("webm.webm", "libvpx", {"g": "20"}),
        ("old.avi", "mpeg4", {"g": "12"}),
    ],
)
def test_one_pass_decodes_the_same_frames_as_single_calls(tmp_path, frames, name, codec, options):
    path = write_video(tmp_path / name, frames, codec=codec, options=options)
    for segmentation in (Segmentation(1), Segmentation(1.5, 1.3), Segmentation(0)):
        clips = list(decode_segments(path, 4, segmentation.split))
        segments = segmentation.split(clips[0][1].duration)
        assert len(clips) == len(segments) and (len(segments) > 1) == (segmentation.length > 0)
        for (decoded, metadata), (start, end) in zip(clips, segments, strict=True):
            alone, expected = decode_video(path, 4, start=start, end=end)
            np.testing.assert_array_equal(decoded, alone)
            assert metadata == expected
            assert read_numbers(decoded) == metadata.frames_indices


def test_a_file_is_decoded_once_and_only_as_far_as_needed(tmp_path, frames, monkeypatch, count_decoded):
    path = write_video(tmp_path / "long.mp4", frames, options={"g": "1000"})
    opened, open_video = [], video_file_pig.open_video
    monkeypatch.setattr(video_file_pig, "open_video", lambda *args: opened.append(args) or open_video(*args))
    clips = decode_segments(path, 4, Segmentation(1).split)
    next(clips)
    assert len(count_decoded) == 25  # frames of the first segment only
    for number, _ in enumerate(clips, start=2):
        assert len(count_decoded) == 25 * number
    assert number == 8 and len(opened) == 2  # once for the packets, once for the frames


def test_webm_file_without_duration_is_split(tmp_path, frames):
    """Browsers record such files: the duration is known only after reading the file."""
    path = write_video(tmp_path / "live.webm", frames, codec="libvpx")
    content = path.read_bytes()
    at = content.index(b"\x44\x89\x88")  # the duration element, of 8 bytes
    path.write_bytes(content[:at] + b"\xec\x89" + b"\x00" * 9 + content[at + 11 :])  # a void element of equal length
    import av

    with av.open(path) as container:
        assert container.duration is None
    clips = list(decode_segments(path, 2, Segmentation(2).split))
    assert [metadata.frames_indices for _, metadata in clips] == [[0, 49], [50, 99], [100, 149], [150, 199]]


def test_truncated_file_raises(tmp_path, frames):
    path = cut_file(write_video(tmp_path / "cut.mkv", frames), 0.5)
    with pytest.raises(VideoDecodingError, match="truncated"):
        list(decode_segments(path, 2, Segmentation(1).split))


def test_damage_in_a_later_segment_fails_only_there(tmp_path, frames):
    path = write_video(tmp_path / "damaged.mp4", frames, codec="mpeg4", options={"g": "25"})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    clips = decode_segments(path, 4, Segmentation(1).split)
    num_decoded = 0
    try:
        for decoded, metadata in clips:  # like a single call: the same frames, or an error
            start = metadata.frames_indices[0] / 25
            np.testing.assert_array_equal(decoded, decode_video(path, 4, start=start, end=start + 1)[0])
            num_decoded += 1
    except VideoDecodingError as error:
        assert "damaged" in error.reason
    assert num_decoded


def test_folder_of_frames_is_one_segment(tmp_path):
    folder = write_frame_folder(tmp_path / "frames", numbered_frames(30))
    [(decoded, metadata)] = decode_segments(folder, 3, Segmentation(1).split)
    assert metadata.frames_indices == [0, 14, 29] and decoded.shape[0] == 3
