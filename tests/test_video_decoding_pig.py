"""Test decoding of real video files: sampled frames, segments, folders of frames, and error messages."""

import itertools
import pickle
import sys
from contextlib import nullcontext

import av
import numpy as np
import pytest
from transformers.dynamic_module_utils import get_imports

from modeling_pig import video_file_pig, video_torchcodec_pig
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video, ensure_opens, sample_frame_indices
from tests.video_files import (
    add_empty_packets,
    cut_file,
    numbered_frames,
    read_numbers,
    set_mp4_edit,
    set_mp4_matrix,
    write_audio,
    write_frame_folder,
    write_video,
)


@pytest.fixture(scope="module")
def frames():
    return numbered_frames(75)


# sampling of frames


@pytest.mark.parametrize(
    "num_video_frames, num_frames, expected",
    [
        (10, 4, [0, 3, 6, 9]),
        (11, 3, [0, 5, 10]),
        (9, 1, [4]),
        (3, 5, [0, 0, 1, 1, 2]),
    ],
)
def test_sampled_frames_are_evenly_spaced_and_include_both_ends(num_video_frames, num_frames, expected):
    indices = sample_frame_indices(num_video_frames, num_frames)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


def test_jittered_frames_are_in_range_and_in_order():
    rng = np.random.default_rng(0)
    for num_video_frames, num_frames in 50 * [*itertools.product([1, 2, 3, 5, 12, 13, 300], [1, 2, 3, 12, 40])]:
        indices = sample_frame_indices(num_video_frames, num_frames, rng)
        assert indices.shape == (num_frames,) and indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < num_video_frames
        assert (np.diff(indices) >= 0).all()


def test_jitter_covers_one_step_at_both_ends():
    rng = np.random.default_rng(0)
    samples = np.array([sample_frame_indices(100, 11, rng) for _ in range(600)])  # a step is 100 // 10 frames
    assert set(samples[:, 0]) == set(range(0, 11))
    assert set(samples[:, -1]) == set(range(89, 100))
    single = {sample_frame_indices(5, 1, rng).item() for _ in range(100)}
    assert single == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("num_video_frames, num_frames", [(0, 4), (4, 0)])
def test_numbers_of_frames_below_one_are_rejected(num_video_frames, num_frames):
    with pytest.raises(ValueError, match=f"at least 1, got {num_video_frames} and {num_frames}"):
        sample_frame_indices(num_video_frames, num_frames)


# decoded frames


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("one_group.mp4", "libx264", {"bf": "3"}),
        ("groups.mp4", "libx264", {"bf": "3", "g": "15"}),
        ("open_groups.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=2:keyint=15"}),
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:bframes=0:keyint=15"}),
        ("groups.mkv", "libx264", {"g": "15"}),
        ("groups.ts", "libx264", {"g": "15"}),
        ("no_timestamps.h264", "libx264", {"g": "15"}),
        ("vp9.webm", "libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
        ("h264.avi", "libx264", {"g": "15", "bf": "3"}),
        ("mpeg1.mpg", "mpeg1video", {"g": "15", "bf": "2"}),
        ("wmv2.wmv", "wmv2", {"g": "15"}),
    ],
)
def test_decoded_frames_are_the_sampled_frames(tmp_path, frames, name, codec, options):
    path = write_video(tmp_path / name, frames, codec=codec, options=options)
    all_frames, metadata = decode_video(path, len(frames))
    assert metadata.total_num_frames == len(frames)
    assert metadata.fps == pytest.approx(25)
    assert metadata.duration == pytest.approx(3)
    assert read_numbers(all_frames) == list(range(len(frames)))
    for num_frames in (1, 2, 3, 7, 12):
        for rng in (None, np.random.default_rng(num_frames)):
            chosen, metadata = decode_video(path, num_frames, rng)
            assert chosen.dtype == np.uint8 and chosen.shape == (num_frames, 64, 96, 3)
            assert (chosen == all_frames[metadata.frames_indices]).all()


def test_metadata(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, fps=30)
    _, metadata = decode_video(str(path), 4)
    assert dict(metadata) == {
        "total_num_frames": 75,
        "fps": 30.0,
        "width": 96,
        "height": 64,
        "duration": 2.5,
        "video_backend": "pyav",
        "frames_indices": [0, 24, 49, 74],
    }


def test_decoding_starts_at_the_last_keyframe_before_each_frame(tmp_path, frames, count_decoded):
    path = write_video(tmp_path / "video.mp4", frames, options={"g": "15", "bf": "0", "sc_threshold": "0"})
    chosen, _ = decode_video(path, 3)
    assert read_numbers(chosen) == [0, 37, 74]
    assert len(count_decoded) == 1 + 8 + 15  # from the keyframes 0, 30 and 60
    count_decoded.clear()
    decode_video(path, 4, start=1.2, end=1.6)
    assert len(count_decoded) == 10  # 30 to 39


def test_decoding_stops_after_the_last_sampled_frame(tmp_path, frames, count_decoded):
    path = write_video(tmp_path / "video.mp4", frames, options={"bf": "0"})
    chosen, _ = decode_video(path, 1)
    assert read_numbers(chosen) == [37]
    assert len(count_decoded) == 38


@pytest.mark.parametrize("suffix, codec", [(".mp4", "libx264"), (".webm", "libvpx-vp9")])
def test_variable_frame_rate(tmp_path, frames, suffix, codec):
    pts = np.cumsum(np.random.default_rng(0).integers(1, 6, 40)).tolist()
    path = write_video(tmp_path / f"video{suffix}", frames[:40], codec=codec, options={"g": "10"}, pts=pts)
    chosen, metadata = decode_video(path, 9, sampling="index")
    assert read_numbers(chosen) == metadata.frames_indices == [0, 4, 9, 14, 19, 24, 29, 34, 39]
    assert metadata.total_num_frames == 40
    assert metadata.duration == pytest.approx((pts[-1] - pts[0] + 1) / 25, abs=0.2)
    assert metadata.fps == pytest.approx(40 / metadata.duration)


@pytest.mark.parametrize("suffix, num_frames", [(".mp4", 4), (".mkv", 1)])
def test_frames_that_last_half_a_minute(tmp_path, frames, suffix, num_frames):
    pts = list(range(0, 30 * 25 * num_frames, 30 * 25))
    path = write_video(tmp_path / f"slides{suffix}", frames[:num_frames], pts=pts)
    chosen, metadata = decode_video(path, num_frames)
    assert read_numbers(chosen) == list(range(num_frames))
    assert metadata.duration >= 30 * (num_frames - 1)


def test_repeated_frames_of_an_avi_do_not_count_as_missing(tmp_path, frames):
    path = write_video(tmp_path / "video.avi", frames[:20], codec="mpeg4", pts=range(0, 100, 5))
    chosen, metadata = decode_video(path, 20)
    assert read_numbers(chosen) == list(range(20))
    assert metadata.fps == pytest.approx(20 / (96 / 25))


@pytest.mark.parametrize(
    "num_video_frames, suffix, codec", [(1, ".mp4", "libx264"), (1, ".webm", "libvpx-vp9"), (5, ".avi", "mpeg4")]
)
def test_short_videos_repeat_frames(tmp_path, frames, num_video_frames, suffix, codec):
    path = write_video(tmp_path / f"video{suffix}", frames[:num_video_frames], codec=codec)
    chosen, metadata = decode_video(path, 12)
    assert chosen.shape == (12, 64, 96, 3)
    assert read_numbers(chosen) == metadata.frames_indices == sample_frame_indices(num_video_frames, 12).tolist()
    assert metadata.total_num_frames == num_video_frames
    assert metadata.fps == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("rotation", [90, 180])
def test_rotated_videos_are_decoded_upright(tmp_path, rotation):
    upright = numbered_frames(5, height=112, width=96)
    path = write_video(tmp_path / "video.mp4", upright, rotation=rotation)
    chosen, metadata = decode_video(path, 5)
    assert chosen.shape == upright.shape
    assert (metadata.height, metadata.width) == (112, 96)
    assert read_numbers(chosen) == [0, 1, 2, 3, 4]
    assert np.abs(chosen.astype(int) - upright).mean() < 15


def test_display_matrix_of_a_phone_is_applied(tmp_path):
    # A phone held upright stores frames rotated by 90 degrees. The matrix maps (x, y) to (-y, x), a clockwise quarter
    # turn if y points down.
    upright = numbered_frames(3, height=112, width=96)
    rotated = np.rot90(upright, axes=(1, 2))
    path = set_mp4_matrix(write_video(tmp_path / "video.mp4", rotated), (0, 1, -1, 0))
    chosen, _ = decode_video(path, 3)
    assert chosen.shape == upright.shape
    assert read_numbers(chosen) == [0, 1, 2]


def test_frames_removed_by_an_edit_list_do_not_count_as_missing(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, options={"g": "15"})
    set_mp4_edit(path, start=20 * 512, duration=1200)  # a frame lasts 512 ticks, or 40 ms
    chosen, metadata = decode_video(path, 30)
    assert metadata.total_num_frames == 30
    assert read_numbers(chosen) == list(range(20, 50))


def test_packets_without_an_image_repeat_the_previous_frame(tmp_path, frames):
    video = write_video(tmp_path / "video.mkv", frames[:20], codec="mpeg4", options={"g": "5"})
    path = add_empty_packets(video, tmp_path / "empty_packets.mkv", after=[10, 19])
    chosen, metadata = decode_video(path, 22, sampling="index")
    assert metadata.total_num_frames == 22
    assert read_numbers(chosen) == [*range(11), 11, *range(11, 20), 19]


def join_transport_streams(path, *videos):
    path.write_bytes(b"".join(video.read_bytes() for video in videos))
    return path


def test_all_frames_get_the_size_of_the_first(tmp_path):
    small, large = numbered_frames(12), numbered_frames(24, height=128, width=192)[12:]
    path = join_transport_streams(
        tmp_path / "video.ts",
        write_video(tmp_path / "0.ts", small, options={"g": "6"}),
        write_video(tmp_path / "1.ts", large, options={"g": "6"}, pts=range(20, 32)),
    )
    chosen, metadata = decode_video(path, 24, sampling="index")
    assert chosen.shape == (24, 64, 96, 3)
    assert (metadata.height, metadata.width) == (64, 96)
    assert read_numbers(chosen) == list(range(24))


def test_frames_with_duplicate_timestamps_are_counted(tmp_path, frames):
    path = join_transport_streams(
        tmp_path / "video.ts",
        write_video(tmp_path / "0.ts", frames[:20], options={"g": "5"}),
        write_video(tmp_path / "1.ts", frames[20:40], options={"g": "5"}),  # starts at 0 again
    )
    chosen, metadata = decode_video(path, 40)
    assert read_numbers(chosen) == list(range(40))
    assert metadata.duration == pytest.approx(40 / 25)


def test_file_names_are_not_interpreted_by_ffmpeg(tmp_path, monkeypatch, frames):
    path = write_video(tmp_path / "video.mp4", frames[:3])
    monkeypatch.chdir(tmp_path)
    for name in ("http:video.mp4", "50%03d.mp4", "a video.mp4", "vidéo?x=1.mp4"):
        path = path.rename(tmp_path / name)
        assert read_numbers(decode_video(name, 3)[0]) == [0, 1, 2]


# segments


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("groups.mp4", "libx264", {"bf": "3", "g": "15"}),
        ("groups.mkv", "libx264", {"g": "15"}),
        ("groups.ts", "libx264", {"g": "15"}),  # starts at 1.4 s
        ("no_timestamps.h264", "libx264", {"g": "15"}),
        ("mpeg4.avi", "mpeg4", {"g": "15", "bf": "2"}),
    ],
)
def test_segments_contain_the_frames_that_begin_in_them(tmp_path, frames, name, codec, options):
    path = write_video(tmp_path / name, frames, codec=codec, options=options)
    for start, end, first, last in [
        (0, 3, 0, 74),
        (1, 2, 25, 49),
        (1.01, 1.11, 26, 27),
        (1.01, 1.02, 25, 25),  # no frame begins between these times
        (None, 0.4, 0, 9),
        (2.8, None, 70, 74),
        (-5, 100, 0, 74),
        (2.99, 100, 74, 74),
        (0, 1e-9, 0, 0),
    ]:
        expected = (first + sample_frame_indices(last - first + 1, 5)).tolist()
        chosen, metadata = decode_video(path, 5, start=start, end=end)
        assert read_numbers(chosen) == metadata.frames_indices == expected
        assert (metadata.total_num_frames, metadata.duration) == (75, pytest.approx(3))  # of the whole file
        chosen, metadata = decode_video(path, 5, np.random.default_rng(0), start, end)
        jittered = first + sample_frame_indices(last - first + 1, 5, np.random.default_rng(0))
        assert read_numbers(chosen) == metadata.frames_indices == jittered.tolist()


def test_rounded_times_find_their_frame(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, fps=30, options={"g": "5"})
    for number in range(24):
        start, end = round(number / 30, 6), round((number + 2) / 30, 6)
        assert read_numbers(decode_video(path, 2, start=start, end=end)[0]) == [number, number + 1]


@pytest.mark.parametrize("name, codec", [("video.mp4", "libx264"), ("video.avi", "mpeg4")])
def test_segments_of_a_variable_frame_rate(tmp_path, frames, name, codec):
    pts = [*range(20), *range(20, 120, 5)]
    path = write_video(tmp_path / name, frames[:40], codec=codec, pts=pts)
    for start, end in [(0, 0.8), (0.8, 1.4), (0.7, 3), (4, 9)]:
        chosen, _ = decode_video(path, 3, start=start, end=end, sampling="index")
        inside = [number for number, time in enumerate(pts) if start * 25 <= time < end * 25]
        assert read_numbers(chosen) == [inside[i] for i in sample_frame_indices(len(inside), 3)]


@pytest.mark.parametrize(
    "start, end, reason",
    [
        (3, None, "the segment starts at 3 s, the video ends at 3 s"),
        (2, 2, "the segment from 2 to 2 s is empty"),
        (None, 0, "the segment from 0 to 0 s is empty"),
        (float("nan"), 2, "the segment from nan to 2 s is empty"),
        (1, float("nan"), "the segment from 1 to nan s is empty"),
    ],
)
def test_empty_segments_are_rejected(tmp_path, frames, start, end, reason):
    path = write_video(tmp_path / "video.mp4", frames)
    with pytest.raises(VideoDecodingError, match=reason):
        decode_video(path, 4, start=start, end=end)


# folders of frames


@pytest.mark.parametrize("name", ["{:06d}.jpg", "frame_{:04d}.jpeg", "img_{}.JPG", "7_{}.jpg"])
def test_folder_of_frames_is_decoded_without_pyav(tmp_path, frames, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # PyAV is not needed
    folder = write_frame_folder(tmp_path / "video", frames, name)
    for other in (".hidden_3.jpg", "._000001.jpg", "thumbs.db", "cover.jpg", "frame_5.jpg.part", "12.png"):
        (folder / other).write_bytes(b"no frame")
    for num_frames in (1, 3, 12, 100):
        chosen, metadata = decode_video(folder, num_frames)
        assert chosen.dtype == np.uint8 and chosen.shape == (num_frames, 64, 96, 3)
        assert read_numbers(chosen) == metadata.frames_indices == sample_frame_indices(75, num_frames).tolist()
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (75, None, None)
    assert (metadata.height, metadata.width) == (64, 96)
    _, metadata = decode_video(folder, 4, np.random.default_rng(3))
    assert metadata.frames_indices == sample_frame_indices(75, 4, np.random.default_rng(3)).tolist()


def test_only_sampled_frames_of_a_folder_are_read(tmp_path, frames):
    folder = write_frame_folder(tmp_path / "video", frames[:9])
    for number in (2, 3, 4, 6, 7, 8):
        (folder / f"{number:06d}.jpg").write_bytes(b"damaged")
    assert read_numbers(decode_video(folder, 3)[0]) == [0, 4, 8]
    assert_not_decodable(folder, "frame 000003.jpg cannot be read as a JPEG; extract or copy it again", opens=True)


def test_all_frames_of_a_folder_get_the_size_of_the_first(tmp_path):
    folder = write_frame_folder(tmp_path / "video", numbered_frames(2))
    large = write_frame_folder(tmp_path / "large", numbered_frames(4, height=128, width=192)[2:])
    for number in (1, 2):
        (large / f"{number:06d}.jpg").rename(folder / f"{number + 2:06d}.jpg")
    chosen, _ = decode_video(folder, 4)
    assert chosen.shape == (4, 64, 96, 3)
    assert read_numbers(chosen) == [0, 1, 2, 3]


def test_folders_reject_segments_and_truncated_frames(tmp_path, frames):
    folder = write_frame_folder(tmp_path / "video", frames[:4])
    for start, end in [(0, None), (None, 1)]:
        with pytest.raises(VideoDecodingError, match="a folder of frames has no frame rate"):
            decode_video(folder, 2, start=start, end=end)
    cut_file(folder / "000002.jpg", 0.5)
    assert_not_decodable(folder, "the frame 000002.jpg cannot be read", opens=True)
    (folder / "000001.jpg").write_bytes(b"no JPEG")
    assert_not_decodable(folder, "the frame 000001.jpg cannot be read")


# errors


def assert_not_decodable(path, reason, opens=False):
    """Assert that decoding fails, and that `ensure_opens` fails too unless the file `opens`."""
    with pytest.raises(VideoDecodingError, match=reason) as caught:
        decode_video(path, 4)
    error = caught.value
    with nullcontext() if opens else pytest.raises(VideoDecodingError, match=reason):
        ensure_opens(path)
    assert error.path == str(path)
    assert str(error) == f"{path}: {error.reason}"
    assert "\n" not in str(error)


def test_missing_and_empty_files_and_folders_are_an_error(tmp_path):
    assert_not_decodable(tmp_path / "missing.mp4", "no such file")
    with pytest.raises(VideoDecodingError, match="URLs are not read: download the video"):
        decode_video("https://host.example/video.mp4", 4)
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    assert_not_decodable(folder, "a directory without numbered JPEG frames")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert_not_decodable(empty, "the file is empty; download or copy it again")


@pytest.mark.parametrize(
    "name, content",
    [
        ("junk.mp4", np.random.default_rng(0).bytes(300_000)),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>"),
        # FFmpeg would read a live playlist forever.
        ("playlist.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n"),
    ],
)
def test_files_of_other_types_are_an_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert_not_decodable(path, "not a video file")


def test_audio_files_are_an_error(tmp_path):
    assert_not_decodable(write_audio(tmp_path / "audio.m4a"), "no video stream")
    assert_not_decodable(write_audio(tmp_path / "audio.mp4", with_cover=True), "no video stream")
    assert_not_decodable(write_audio(tmp_path / "audio.wav"), "not a video file")


def test_mp4_without_an_index_is_an_error(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames)
    assert_not_decodable(cut_file(path, 0.5), "cut off before its index; download or copy it again")


def test_truncated_mp4_is_an_error(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, options={"g": "15"}, faststart=True)
    assert_not_decodable(
        cut_file(path, 0.6),
        r"truncated: the file holds [2-5]\d of about 75 frames; download or copy it again",
        opens=True,
    )


@pytest.mark.parametrize("name, codec", [("video.mkv", "libx264"), ("video.avi", "mpeg4")])
def test_truncated_mkv_and_avi_are_an_error(tmp_path, frames, name, codec):
    path = write_video(tmp_path / name, frames, codec=codec, options={"g": "15", "b": "2000k"})
    assert_not_decodable(cut_file(path, 0.6), r"truncated: the file holds [2-5]\d of about [67]\d frames", opens=True)


@pytest.mark.parametrize(
    "codec, options",
    [("libx264", {"bf": "0"}), ("libx264", {"bf": "3", "b_strategy": "0"}), ("mpeg4", {"bf": "2"})],
)
def test_missing_last_packet_is_tolerated(tmp_path, frames, codec, options):
    path = write_video(tmp_path / "video.mp4", frames[:73], codec=codec, options=options, faststart=True)
    with av.open(path) as container:
        pts = [packet.pts for packet in container.demux(video=0) if packet.size]
    lost = sorted(pts).index(pts[-1])  # with B-frames, not the last frame
    assert (lost == 72) == (options["bf"] == "0")
    path.write_bytes(path.read_bytes()[:-10])
    chosen, metadata = decode_video(path, 72, sampling="index")
    assert metadata.total_num_frames == 72
    assert read_numbers(chosen) == [number for number in range(73) if number != lost]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_invalid_timestamps_are_an_error(tmp_path, frames, suffix):
    """A file of a few hundred bytes must not give a hundred thousand segments."""
    path = write_video(tmp_path / f"video{suffix}", frames[:3], pts=[0, 1, 25 * 10**4])
    assert_not_decodable(path, r"invalid timestamps: 3 frames in [12]\d{4} s", opens=True)


def test_damaged_files_are_an_error(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (content.index(b"moov") - start) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    assert_not_decodable(path, "damaged: 12 of 75 packets cannot be decoded, more than 10%; download", opens=True)


def test_ensure_opens_decodes_no_frame_of_a_video(tmp_path, frames, count_decoded):
    ensure_opens(write_video(tmp_path / "video.mp4", frames))
    ensure_opens(str(write_frame_folder(tmp_path / "folder", frames[:2])))
    assert not count_decoded


def test_missing_pyav_raises_an_error_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        decode_video(tmp_path / "video.mp4", 4)


def test_remote_code_does_not_require_decoders():
    assert "av" not in get_imports(video_file_pig.__file__)
    assert "torchcodec" not in get_imports(video_torchcodec_pig.__file__)


def test_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(VideoDecodingError("clip.mp4", "the file is empty")))
    assert (error.path, error.reason, str(error)) == ("clip.mp4", "the file is empty", "clip.mp4: the file is empty")


# opening
