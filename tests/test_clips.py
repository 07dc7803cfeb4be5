"""Clips: which frames and sound they hold, when they are copied, and what happens with files and disks that fail."""

import io
import os
import resource
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from modeling_pig.retrieval import clips
from modeling_pig.retrieval.clips import write_clip
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video
from modeling_pig.video_file_pig import import_av, read_track

from .video_files import cut_file, numbered_frames, read_numbers, set_mp4_matrix, write_frame_folder, write_video


FPS, RATE = 25, 24_000
# Container, encoders of video and sound. A keyframe every 2 s.
KINDS = {
    "a.mp4": ("libx264", "aac"),
    "a.mkv": ("libx264", "aac"),
    "a.ts": ("libx264", "aac"),
    "a.avi": ("mpeg4", "libmp3lame"),
    "a.mpg": ("mpeg2video", "mp2"),
    "a.webm": ("libvpx-vp9", "libopus"),
}


def write_film(path: Path, video: str, sound: str, num_frames: int = 150) -> Path:
    """Write numbered frames with a tone that begins at 3 s; a keyframe every 50 frames."""
    options = {"g": "50", "bf": "2"} if video in ("libx264", "mpeg2video") else {"g": "50"}
    with av.open(path, "w") as container:
        stream = container.add_stream(video, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        audio = container.add_stream(sound, rate=RATE, layout="mono")
        for number, image in enumerate(numbered_frames(num_frames)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            samples = RATE // FPS
            seconds = (number * samples + np.arange(samples)) / RATE
            tone = 8000 * np.sin(2 * np.pi * 500 * seconds) * (seconds >= 3)
            frame = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = RATE, number * samples, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(stream.encode())
        container.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {name: write_film(folder / name, *encoders) for name, encoders in KINDS.items()}


def numbers_of(path: Path) -> list[int]:
    """Return the numbers of all frames of a file."""
    num_frames = read_track(import_av(), str(path)).metadata.total_num_frames
    return read_numbers(decode_video(path, num_frames, sampling="index")[0])


def codecs_of(path: Path) -> list[str]:
    with av.open(path) as container:
        return [stream.codec_context.codec.canonical_name for stream in container.streams]


def start_of_tone(path: Path) -> float:
    """Return the time at which the sound of a file becomes loud, in seconds."""
    with av.open(path) as container:
        for frame in container.decode(container.streams.audio[0]):
            assert frame.format.name in ("flt", "fltp")
            loud = np.abs(frame.to_ndarray()).max(axis=0) > 0.03
            if loud.any():
                return float(frame.pts * frame.time_base) + int(loud.argmax()) / frame.sample_rate
    raise AssertionError("no tone")


@pytest.mark.parametrize("name", KINDS)
def test_exact_clip_holds_the_frames_that_are_shown_and_the_sound(films, tmp_path, name):
    clip = write_clip(films[name], 1.5, 2.0, tmp_path / "clip.mp4", exact=True)
    assert not clip.is_copy and clip.has_sound
    assert (clip.start, clip.duration) == pytest.approx((1.5, 2.0))
    expected = numbers_of(films[name])  # all of the film
    times = read_track(import_av(), str(films[name])).times
    shown = np.searchsorted(times, [1.5 + 1e-6, 3.5 - 1e-6], side="right") - 1
    assert numbers_of(tmp_path / "clip.mp4") == expected[shown[0] : shown[1] + 1]
    assert read_track(import_av(), clip.path).metadata.duration == pytest.approx(2.0, abs=0.03)
    assert start_of_tone(tmp_path / "clip.mp4") == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm"])
def test_clip_that_begins_at_a_keyframe_is_copied(films, tmp_path, name):
    """Frames before the start are hidden; frames after the end are few: those that other frames need."""
    clip = write_clip(films[name], 2.5, 2.0, tmp_path / "clip.mp4")
    assert clip.is_copy and codecs_of(clip.path) == codecs_of(films[name])
    numbers = numbers_of(tmp_path / "clip.mp4")
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] in (62, 63) and 111 <= numbers[-1] <= 116
    assert start_of_tone(tmp_path / "clip.mp4") == pytest.approx(0.5, abs=0.1)


def test_formats_without_an_edit_list_begin_at_the_keyframe(films, tmp_path):
    clip = write_clip(films["a.mp4"], 2.5, 2.0, tmp_path / "clip.mkv")
    assert clip.is_copy and clip.start == pytest.approx(2.0) and clip.duration == pytest.approx(2.5, abs=0.01)
    assert numbers_of(tmp_path / "clip.mkv")[0] == 50
    assert start_of_tone(tmp_path / "clip.mkv") == pytest.approx(1.0, abs=0.1)


def test_clip_far_from_a_keyframe_is_encoded_again(films, tmp_path):
    assert not write_clip(films["a.mp4"], 3.5, 1.0, tmp_path / "clip.mp4").is_copy
    assert numbers_of(tmp_path / "clip.mp4")[0] in (87, 88)


@pytest.mark.parametrize(
    "name, output, codecs, is_copy",
    [
        ("a.mkv", "clip.mp4", ["h264", "aac"], True),
        ("a.ts", "clip.mp4", ["h264", "aac"], True),
        ("a.avi", "clip.mp4", ["h264", "aac"], False),
        ("a.mpg", "clip.mp4", ["h264", "aac"], False),
        ("a.webm", "clip.mp4", ["h264", "aac"], False),
        ("a.webm", "clip.webm", ["vp9", "opus"], True),
        ("a.mp4", "clip.webm", ["vp9", "opus"], False),
    ],
)
def test_playable_whole_videos(films, tmp_path, name, output, codecs, is_copy):
    clip = write_clip(films[name], None, None, tmp_path / output, playable=True)
    assert (codecs_of(clip.path), clip.is_copy) == (codecs, is_copy)
    assert numbers_of(tmp_path / output) == numbers_of(films[name])


def test_playable_clips_have_at_most_720_lines_and_even_sides(tmp_path):
    frames = np.zeros((3, 902, 1601, 3), np.uint8)
    with av.open(tmp_path / "large.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 1601, 902, "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    write_clip(tmp_path / "large.mkv", 0, 1, tmp_path / "clip.mp4", playable=True)
    write_clip(tmp_path / "large.mkv", 0, 1, tmp_path / "exact.mp4", exact=True)
    assert decode_video(tmp_path / "clip.mp4", 1)[0].shape == (1, 720, 1278, 3)
    assert decode_video(tmp_path / "exact.mp4", 1)[0].shape == (1, 902, 1600, 3)


@pytest.mark.parametrize("exact", [True, False])
def test_rotated_videos_stay_upright(tmp_path, exact):
    frames = numbered_frames(20, height=96)
    source = write_video(tmp_path / "phone.mp4", frames, rotation=90)
    write_clip(source, 0, 0.5, tmp_path / "clip.mp4", exact=exact)
    assert numbers_of(tmp_path / "clip.mp4")[:10] == list(range(10))


def test_mirrored_videos_are_encoded_as_they_are_shown(tmp_path):
    source = set_mp4_matrix(write_video(tmp_path / "selfie.mp4", numbered_frames(10)[:, :, ::-1]), (-1, 0, 0, 1))
    write_clip(source, 0, 0.4, tmp_path / "clip.mp4", exact=True)
    assert numbers_of(tmp_path / "clip.mp4") == list(range(10))


def test_frames_of_a_variable_frame_rate_keep_their_times(tmp_path):
    source = write_video(tmp_path / "vfr.mp4", numbered_frames(6), pts=[0, 1, 50, 51, 52, 150], options={"bf": "0"})
    write_clip(source, 1.0, 4.0, tmp_path / "clip.mp4", exact=True)
    track = read_track(import_av(), str(tmp_path / "clip.mp4"))
    assert numbers_of(tmp_path / "clip.mp4") == [1, 2, 3, 4]  # 1 is still shown at the start
    assert track.times == pytest.approx([0, 1.0, 1.04, 1.08]) and track.metadata.duration == pytest.approx(4.0)


def test_joined_recordings_without_a_common_clock(films, tmp_path):
    joined = tmp_path / "joined.ts"
    joined.write_bytes(films["a.ts"].read_bytes() * 2)
    clip = write_clip(joined, 7.0, 1.0, tmp_path / "clip.mp4")
    assert clip.has_sound and numbers_of(tmp_path / "clip.mp4")[2:] == list(range(numbers_of(joined)[177], 50))[:24]


def test_video_of_one_frame(tmp_path):
    source = write_video(tmp_path / "one.mp4", numbered_frames(1))
    for exact in (False, True):
        clip = write_clip(source, 0, 30, tmp_path / "clip.mp4", exact=exact)
        assert clip.duration == pytest.approx(0.04) and numbers_of(tmp_path / "clip.mp4") == [0]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.avi"])
@pytest.mark.parametrize("exact", [False, True])
def test_start_beyond_the_end(films, tmp_path, name, exact):
    with pytest.raises(VideoDecodingError, match=r"the clip starts at 100 s, the video ends at (5\.9|6)"):
        write_clip(films[name], 100, 2, tmp_path / "clip.mp4", exact=exact)
    assert list(tmp_path.iterdir()) == []


def test_open_files_are_read(films, tmp_path):
    write_clip(io.BytesIO(films["a.mkv"].read_bytes()), 2.0, 0.4, tmp_path / "clip.mp4", exact=True)
    assert numbers_of(tmp_path / "clip.mp4") == list(range(50, 60))


def test_comment_is_written_and_tags_of_the_source_are_not(films, tmp_path):
    tagged = tmp_path / "tagged.mp4"
    with av.open(films["a.mp4"]) as old, av.open(tagged, "w") as new:
        new.metadata["title"] = "At home"
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    write_clip(tagged, 0, 1, tmp_path / "clip.mp4", comment="of a film")
    with av.open(tmp_path / "clip.mp4") as container:
        assert container.metadata["comment"] == "of a film" and "title" not in container.metadata


def test_cancelled_clips_leave_no_file(films, tmp_path):
    answers = iter([False] * 20)
    with pytest.raises(InterruptedError):
        write_clip(films["a.mp4"], 0, 4, tmp_path / "clip.mp4", is_cancelled=lambda: next(answers, True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exact", [False, True])
def test_full_disk_leaves_the_previous_file(films, tmp_path, exact):
    previous = tmp_path / "clip.mp4"
    previous.write_text("previous")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # bytes of a file; Python ignores the signal
    try:
        with pytest.raises(OSError, match=r"clip.mp4 cannot be written: File too large"):
            write_clip(films["a.mp4"], 0, 4, previous, exact=exact)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["clip.mp4"] and previous.read_text() == "previous"


def test_truncated_videos_yield_what_they_hold(tmp_path):
    source = write_video(tmp_path / "cut.mp4", numbered_frames(100), options={"g": "25"}, faststart=True)
    cut_file(source, 0.6)
    assert write_clip(source, 1, 0.4, tmp_path / "clip.mp4").is_copy
    with pytest.raises(VideoDecodingError, match="the video ends at"):
        write_clip(source, 3.8, 0.1, tmp_path / "clip.mp4")


def test_invalid_arguments(films, tmp_path):
    film, output = films["a.mp4"], tmp_path / "clip.mp4"
    for start, duration in ((-1, 2), (float("nan"), 2), (1, 0), (1, float("inf"))):
        with pytest.raises(ValueError, match=r"A clip cannot (start at|last)"):
            write_clip(film, start, duration, output)
    with pytest.raises(ValueError, match="give a name that ends in .mp4"):
        write_clip(film, 0, 1, tmp_path / "clip.avi")
    copy = shutil.copy(film, tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="is the video itself"):
        write_clip(copy, 0, 1, copy)
    with pytest.raises(VideoDecodingError, match="no such file"):
        write_clip(tmp_path / "gone.mp4", 0, 1, output)
    with pytest.raises(VideoDecodingError, match="a folder of frames has no frame rate"):
        write_clip(write_frame_folder(tmp_path / "frames", numbered_frames(2)), 0, 1, output)


def test_without_libx264_clips_are_webm(films, tmp_path, monkeypatch):
    codecs = av.codecs_available - {"libx264"}
    monkeypatch.setattr(av, "codecs_available", codecs)
    assert clips.clip_suffix() == ".webm"
    with pytest.raises(ValueError, match=r"no libx264: give a name that ends in \.webm"):
        write_clip(films["a.mp4"], 0, 1, tmp_path / "clip.mp4", exact=True)
