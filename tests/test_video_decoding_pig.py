"""Decoding real video files: every frame comes from where it should, and what cannot be decoded says why."""

import pickle
import sys

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader
from transformers.dynamic_module_utils import get_imports

from modeling_pig import video_decoding_pig
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video, sample_frame_indices
from tests.video_files import (
    add_empty_packets,
    cut_file,
    numbered_frames,
    read_numbers,
    set_mp4_edit,
    set_mp4_matrix,
    write_audio,
    write_video,
)


@pytest.fixture(scope="module")
def frames():
    return numbered_frames(75)


@pytest.fixture
def count_decoded(monkeypatch):
    """A list that gets an entry for each frame that is decoded."""
    decoded = []
    iterate_frames = video_decoding_pig._iterate_frames

    def iterate_and_count(*args):
        for frame in iterate_frames(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_decoding_pig, "_iterate_frames", iterate_and_count)
    return decoded


# How frames are chosen


@pytest.mark.parametrize(
    "num_video_frames, num_frames, expected",
    [
        (10, 4, [0, 3, 6, 9]),
        (11, 3, [0, 5, 10]),
        (100, 12, [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]),
        (9, 1, [4]),
        (3, 5, [0, 0, 1, 1, 2]),
        (1, 3, [0, 0, 0]),
        (7, 2, [0, 6]),
    ],
)
def test_frames_are_evenly_spaced_with_both_ends(num_video_frames, num_frames, expected):
    indices = sample_frame_indices(num_video_frames, num_frames)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize("num_video_frames", [1, 2, 3, 5, 12, 13, 300])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 12, 40])
def test_jittered_frames_stay_in_the_video_and_in_order(num_video_frames, num_frames):
    rng = np.random.default_rng(0)
    for _ in range(50):
        indices = sample_frame_indices(num_video_frames, num_frames, rng)
        assert indices.shape == (num_frames,) and indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < num_video_frames
        assert (np.diff(indices) >= 0).all()


def test_jitter_reaches_one_step_from_both_ends():
    rng = np.random.default_rng(0)
    drawn = np.array([sample_frame_indices(100, 11, rng) for _ in range(600)])  # a step is 100 // 10 frames
    assert set(drawn[:, 0]) == set(range(0, 11))
    assert set(drawn[:, -1]) == set(range(89, 100))
    single = {sample_frame_indices(5, 1, rng).item() for _ in range(100)}
    assert single == {0, 1, 2, 3, 4}


def test_the_same_generator_draws_the_same_frames():
    first, second = (sample_frame_indices(300, 12, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("num_video_frames, num_frames", [(0, 4), (4, 0), (-1, 4)])
def test_nothing_to_choose_from_is_an_error(num_video_frames, num_frames):
    with pytest.raises(ValueError, match=f"at least 1, got {num_video_frames} and {num_frames}"):
        sample_frame_indices(num_video_frames, num_frames)


# Which frames come out


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("one_group.mp4", "libx264", {"bf": "3"}),
        ("groups.mp4", "libx264", {"bf": "3", "g": "15"}),
        ("open_groups.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=2:keyint=15"}),
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:bframes=0:keyint=15"}),
        ("groups.mov", "libx264", {"g": "15"}),
        ("groups.mkv", "libx264", {"g": "15"}),
        ("groups.ts", "libx264", {"g": "15"}),
        ("groups.flv", "libx264", {"g": "15"}),
        ("no_timestamps.h264", "libx264", {"g": "15"}),
        ("vp9.webm", "libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
        ("vp8.webm", "libvpx", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
        ("mpeg4.avi", "mpeg4", {"g": "15", "bf": "2"}),
        ("h264.avi", "libx264", {"g": "15", "bf": "3"}),
        ("mpeg1.mpg", "mpeg1video", {"g": "15", "bf": "2"}),
        ("wmv2.wmv", "wmv2", {"g": "15"}),
    ],
)
def test_chosen_frames_come_from_where_they_should(tmp_path, frames, name, codec, options):
    path = write_video(tmp_path / name, frames, codec=codec, options=options)
    every_frame, metadata = decode_video(path, len(frames))
    assert metadata.total_num_frames == len(frames)
    assert metadata.fps == pytest.approx(25)
    assert metadata.duration == pytest.approx(3)
    assert read_numbers(every_frame) == list(range(len(frames)))
    for num_frames in (1, 2, 3, 7, 12):
        for rng in (None, np.random.default_rng(num_frames)):
            chosen, metadata = decode_video(path, num_frames, rng)
            assert chosen.dtype == np.uint8 and chosen.shape == (num_frames, 64, 96, 3)
            assert (chosen == every_frame[metadata.frames_indices]).all()


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


def test_only_the_groups_of_the_wanted_frames_are_decoded(tmp_path, frames, count_decoded):
    path = write_video(tmp_path / "video.mp4", frames, options={"g": "15", "bf": "0", "sc_threshold": "0"})
    chosen, _ = decode_video(path, 3)
    assert read_numbers(chosen) == [0, 37, 74]
    assert len(count_decoded) == 1 + 8 + 15  # from the keyframes 0, 30 and 60


def test_decoding_stops_after_the_last_wanted_frame(tmp_path, frames, count_decoded):
    path = write_video(tmp_path / "video.mp4", frames, options={"bf": "0"})
    chosen, _ = decode_video(path, 1)
    assert read_numbers(chosen) == [37]
    assert len(count_decoded) == 38


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_variable_frame_rate(tmp_path, frames, suffix):
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    pts = np.cumsum(np.random.default_rng(0).integers(1, 6, 40)).tolist()
    path = write_video(tmp_path / f"video{suffix}", frames[:40], codec=codec, options={"g": "10"}, pts=pts)
    chosen, metadata = decode_video(path, 9)
    assert read_numbers(chosen) == metadata.frames_indices == [0, 4, 9, 14, 19, 24, 29, 34, 39]
    assert metadata.total_num_frames == 40
    assert metadata.duration == pytest.approx((pts[-1] - pts[0] + 1) / 25, abs=0.2)
    assert metadata.fps == pytest.approx(40 / metadata.duration)


def test_frames_that_an_avi_repeats_are_not_missing(tmp_path, frames):
    path = write_video(tmp_path / "video.avi", frames[:20], codec="mpeg4", pts=range(0, 100, 5))
    chosen, metadata = decode_video(path, 20)
    assert read_numbers(chosen) == list(range(20))
    assert metadata.fps == pytest.approx(20 / (96 / 25))


@pytest.mark.parametrize("num_video_frames", [1, 2, 5])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_short_videos_repeat_frames(tmp_path, frames, num_video_frames, suffix):
    codec = {".mp4": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}[suffix]
    path = write_video(tmp_path / f"video{suffix}", frames[:num_video_frames], codec=codec)
    chosen, metadata = decode_video(path, 12)
    assert chosen.shape == (12, 64, 96, 3)
    assert read_numbers(chosen) == metadata.frames_indices == sample_frame_indices(num_video_frames, 12).tolist()
    assert metadata.total_num_frames == num_video_frames
    assert metadata.fps == pytest.approx(25, rel=0.05)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_videos_come_out_upright(tmp_path, rotation):
    upright = numbered_frames(5, height=112, width=96)
    path = write_video(tmp_path / "video.mp4", upright, rotation=rotation)
    chosen, metadata = decode_video(path, 5)
    assert chosen.shape == upright.shape
    assert (metadata.height, metadata.width) == (112, 96)
    assert read_numbers(chosen) == [0, 1, 2, 3, 4]
    assert np.abs(chosen.astype(int) - upright).mean() < 15


def test_a_phone_held_upright(tmp_path):
    # The sensor is wide: the stored picture lies on its left side, and the matrix takes (x, y) to (-y, x), a
    # quarter turn clockwise where y points down.
    upright = numbered_frames(3, height=112, width=96)
    lying = np.rot90(upright, axes=(1, 2))
    path = set_mp4_matrix(write_video(tmp_path / "video.mp4", lying), (0, 1, -1, 0))
    chosen, _ = decode_video(path, 3)
    assert chosen.shape == upright.shape
    assert read_numbers(chosen) == [0, 1, 2]


def test_frames_that_an_edit_list_cuts_are_not_missing(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, options={"g": "15"})
    set_mp4_edit(path, start=20 * 512, duration=1200)  # a frame lasts 512 ticks, or 40 ms
    chosen, metadata = decode_video(path, 30)
    assert metadata.total_num_frames == 30
    assert read_numbers(chosen) == list(range(20, 50))


def test_packets_without_a_picture(tmp_path, frames):
    video = write_video(tmp_path / "video.mkv", frames[:20], codec="mpeg4", options={"g": "5"})
    path = add_empty_packets(video, tmp_path / "empty_packets.mkv", after=[10, 19])
    chosen, metadata = decode_video(path, 22)
    assert metadata.total_num_frames == 22
    assert read_numbers(chosen) == [*range(11), 11, *range(11, 20), 19]


def join_transport_streams(path, *videos):
    path.write_bytes(b"".join(video.read_bytes() for video in videos))
    return path


def test_the_size_of_the_first_frame_is_that_of_all(tmp_path):
    small, large = numbered_frames(12), numbered_frames(24, height=128, width=192)[12:]
    path = join_transport_streams(
        tmp_path / "video.ts",
        write_video(tmp_path / "0.ts", small, options={"g": "6"}),
        write_video(tmp_path / "1.ts", large, options={"g": "6"}, pts=range(20, 32)),
    )
    chosen, metadata = decode_video(path, 24)
    assert chosen.shape == (24, 64, 96, 3)
    assert (metadata.height, metadata.width) == (64, 96)
    assert read_numbers(chosen) == list(range(24))


def test_frames_are_counted_where_timestamps_do_not_tell_them_apart(tmp_path, frames):
    path = join_transport_streams(
        tmp_path / "video.ts",
        write_video(tmp_path / "0.ts", frames[:20], options={"g": "5"}),
        write_video(tmp_path / "1.ts", frames[20:40], options={"g": "5"}),  # starts at 0 again
    )
    chosen, metadata = decode_video(path, 40)
    assert read_numbers(chosen) == list(range(40))
    assert metadata.duration == pytest.approx(40 / 25)


@pytest.mark.parametrize("name", ["http:video.mp4", "50%03d.mp4", "a video.mp4", "vidéo?x=1.mp4"])
def test_a_name_is_only_a_name(tmp_path, monkeypatch, frames, name):
    write_video(tmp_path / "video.mp4", frames[:3]).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_numbers(decode_video(name, 3)[0]) == [0, 1, 2]


# What cannot be decoded


def assert_refused(path, reason):
    with pytest.raises(VideoDecodingError, match=reason) as caught:
        decode_video(path, 4)
    error = caught.value
    assert error.path == str(path)
    assert str(error) == f"{path}: {error.reason}"
    assert "\n" not in str(error)


def test_missing_and_empty_files_and_folders(tmp_path):
    assert_refused(tmp_path / "missing.mp4", "no such file")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    assert_refused(folder, "a directory")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert_refused(empty, "the file is empty; download or copy it again")


@pytest.mark.parametrize(
    "name, content",
    [
        ("junk.mp4", np.random.default_rng(0).bytes(300_000)),
        ("zeros.mp4", bytes(300_000)),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("notes.txt", b"some text\n" * 1000),
        # A live playlist would be read again and again for ever.
        ("playlist.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n"),
    ],
)
def test_files_that_are_no_videos(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(path, "not a video file")


def test_audio_is_no_video(tmp_path):
    assert_refused(write_audio(tmp_path / "audio.m4a"), "no video stream")
    assert_refused(write_audio(tmp_path / "audio.mp4", with_cover=True), "no video stream")
    assert_refused(write_audio(tmp_path / "audio.wav"), "not a video file")


def test_an_mp4_without_its_index(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames)
    assert_refused(cut_file(path, 0.5), "cut off before its index; download or copy it again")


def test_a_truncated_mp4(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, options={"g": "15"}, faststart=True)
    assert_refused(cut_file(path, 0.6), r"truncated: [2-5]\d of about 75 frames are there; download or copy it again")


@pytest.mark.parametrize("name, codec", [("video.mkv", "libx264"), ("video.webm", "libvpx"), ("video.avi", "mpeg4")])
def test_other_truncated_files(tmp_path, frames, name, codec):
    path = write_video(tmp_path / name, frames, codec=codec, options={"g": "15", "b": "2000k"})
    assert_refused(cut_file(path, 0.6), r"truncated: [2-5]\d of about [67]\d frames are there")


@pytest.mark.parametrize(
    "codec, options",
    [
        ("libx264", {"bf": "0"}),
        ("libx264", {"bf": "3", "b_strategy": "0"}),
        ("mpeg4", {"bf": "0"}),
        ("mpeg4", {"bf": "2"}),
    ],
)
def test_the_loss_of_the_very_last_packet_is_forgiven(tmp_path, frames, codec, options):
    path = write_video(tmp_path / "video.mp4", frames[:73], codec=codec, options=options, faststart=True)
    with av.open(path) as container:
        pts = [packet.pts for packet in container.demux(video=0) if packet.size]
    lost = sorted(pts).index(pts[-1])  # with B-frames, not the last frame
    assert (lost == 72) == (options["bf"] == "0")
    path.write_bytes(path.read_bytes()[:-10])
    chosen, metadata = decode_video(path, 72)
    assert metadata.total_num_frames == 72
    assert read_numbers(chosen) == [number for number in range(73) if number != lost]


def test_a_damaged_file(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (content.index(b"moov") - start) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    assert_refused(path, r"damaged, decoding fails near frame \d+")


def test_no_frame_at_all_is_asked_for(tmp_path, frames):
    path = write_video(tmp_path / "video.mp4", frames[:3])
    with pytest.raises(ValueError, match="at least 1, got 3 and 0"):
        decode_video(path, 0)


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        decode_video(tmp_path / "video.mp4", 4)


def test_remote_code_does_not_require_pyav():
    assert "av" not in get_imports(video_decoding_pig.__file__)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoDecodingError("clip.mp4", "the file is empty")))
    assert (error.path, error.reason, str(error)) == ("clip.mp4", "the file is empty", "clip.mp4: the file is empty")


def test_the_error_survives_a_data_loader_worker(tmp_path):
    loader = DataLoader([tmp_path / "missing.mp4"], num_workers=1, collate_fn=lambda paths: decode_video(paths[0], 4))
    with pytest.raises(VideoDecodingError, match="missing.mp4: no such file"):
        next(iter(loader))
