"""Shots: where videos are cut, which frames of a shot are encoded, and what the index remembers."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from modeling_pig import VideoIndex
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.encoding.shots import decode_shots
from modeling_pig.encoding.video_segment import ShotRule, VideoSegment
from modeling_pig.encoding.videos import encode_file
from modeling_pig.extras import pip_install
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video

from .cli_helpers import assert_one_line_error
from .video_files import cut_file, numbered_frames, read_numbers, write_frame_folder, write_video


COLOURS = ((200, 40, 40), (40, 60, 220), (60, 200, 60), (240, 240, 240), (120, 120, 120))
FPS = 10


def scenes(*lengths: int) -> np.ndarray:
    """Return numbered frames, `(N, 64, 96, 3)`, of scenes in different colours; lengths are numbers of frames."""
    frames = numbered_frames(sum(lengths))
    first = 0
    for number, length in enumerate(lengths):
        frames[first : first + length, 8:] = COLOURS[number % len(COLOURS)]
        first += length
    return frames


def write_film(path: Path, *lengths: int, **options) -> Path:
    return write_video(path, scenes(*lengths), fps=FPS, **options)


def shots_of(path, rule: ShotRule | None = None, num_frames: int = 4) -> list[tuple[float, float]]:
    return [shot for _, _, shot in decode_shots(path, num_frames, rule or ShotRule())]


def test_shots_are_cut_where_the_picture_changes(tmp_path):
    film = write_film(tmp_path / "film.mp4", 30, 45, 25)
    assert shots_of(film) == [(0, 3), (3, 7.5), (7.5, 10)]


def test_short_shots_stay_with_their_neighbours(tmp_path):
    film = write_film(tmp_path / "film.mp4", 5, 30, 10, 40, 12)
    assert shots_of(film) == [(0, 3.5), (3.5, 9.7)]
    assert shots_of(film, ShotRule(0.5, 30)) == [(0, 0.5), (0.5, 3.5), (3.5, 4.5), (4.5, 8.5), (8.5, 9.7)]


def test_long_shots_are_divided(tmp_path):
    film = write_film(tmp_path / "film.mp4", 110, 55, 30)
    # 11 s: 4 s, 4 s and what remains; 5.5 s: less than 2 s would remain after 4 s, so that the shot is halved.
    shots = shots_of(film, ShotRule(2, 4))
    assert shots == [(0, 4), (4, 8), (8, 11), (11, 13.75), (13.75, 16.5), (16.5, 19.5)]
    assert shots == [(a, b) for a, b in pairwise([0, *(end for _, end in shots)])]


@pytest.mark.parametrize("lengths", [(1,), (2,), (500,)])
def test_videos_without_a_cut_are_one_shot(tmp_path, lengths):
    film = write_film(tmp_path / "film.mp4", *lengths)
    assert shots_of(film, ShotRule(2, 60)) == [(0, lengths[0] / FPS)]


def test_black_and_flash_frames_leave_no_short_shot(tmp_path):
    frames = scenes(100)
    frames[40:43, 8:] = 0  # black
    frames[70, 8:] = 255  # flash
    film = write_video(tmp_path / "film.mp4", frames, fps=FPS)
    shots = shots_of(film)
    assert shots[0][0] == 0 and shots[-1][1] == 10 and len(shots) <= 3
    assert all(end - start >= 2 for start, end in shots)
    assert all(end == start for (_, end), (start, _) in pairwise(shots))


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4")])
@pytest.mark.parametrize("sampling", ["time", "index"])
def test_frames_of_a_short_shot_are_those_of_its_segment(tmp_path, name, codec, sampling):
    film = write_film(tmp_path / name, 30, 25, 28, codec=codec)
    shots = list(decode_shots(film, 8, ShotRule(), sampling))
    assert len(shots) == 3
    for frames, metadata, (start, end) in shots:
        expected, of_segment = decode_video(film, 8, start=start, end=end, sampling=sampling)
        assert read_numbers(frames) == read_numbers(expected) == metadata.frames_indices
        assert (frames == expected).all()
        assert (metadata.height, metadata.width, metadata.duration) == (64, 96, of_segment.duration)


def test_frames_of_a_long_shot_are_nearly_evenly_spaced(tmp_path):
    film = write_film(tmp_path / "film.mp4", 301, 30)
    (frames, _, shot), _ = decode_shots(film, 4, ShotRule(2, 60))
    assert shot == (0, 30.1)
    assert np.abs(np.array(read_numbers(frames)) - np.array([0, 100, 200, 300])).max() <= 13


def test_variable_frame_rate(tmp_path):
    times = [*range(0, 30), *range(30, 90, 6), *range(90, 120)]  # 10 frames of 0.6 s
    frames = scenes(30, 10, 30)
    film = write_video(tmp_path / "film.mp4", frames, fps=FPS, pts=times, options={"bf": "0"})
    shots = list(decode_shots(film, 4, ShotRule()))
    assert [shot for _, _, shot in shots] == [(0, 3), (3, 9), (9, 12)]
    for frames, _, (start, end) in shots:
        assert read_numbers(frames)[0] == read_numbers(decode_video(film, 4, start=start, end=end)[0])[0]


def test_folders_of_frames_stay_whole(tmp_path, model_folder):
    folder = write_frame_folder(tmp_path / "frames", scenes(30, 30))
    encoded = encode_file(load_encoder(model_folder), str(folder), ShotRule())
    assert encoded.segments == [VideoSegment(str(folder))] and encoded.embeddings.shape[0] == 1


def test_damaged_files_fail(tmp_path):
    film = cut_file(write_film(tmp_path / "film.mp4", 60, 60, faststart=True), 0.5)
    with pytest.raises(VideoDecodingError, match="truncated"):
        shots_of(film)


@pytest.mark.parametrize("lengths", [(0, 30), (2, 3), (2, float("inf")), (-1, 5)])
def test_invalid_lengths(lengths):
    with pytest.raises(ValueError, match="give a shortest shot of more than 0 s"):
        ShotRule(*lengths)


@pytest.fixture
def films(tmp_path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mp4", 30, 45, 25)
    write_film(folder / "b.mp4", 40)
    return folder


def segments_of(index: str) -> dict[str, list[tuple[float | None, float | None]]]:
    store = VideoIndex(index)
    found: dict[str, list] = {}
    for entry in store.entries(list(store.files())).entries:
        found.setdefault(Path(entry.path).name, []).append((entry.start, entry.end))
    return {name: sorted(spans, key=str) for name, spans in sorted(found.items())}


def test_index_remembers_shots(pig, films, model_folder):
    arguments = ("index", films, "--model", model_folder, "--index", "v.lance")
    status, _, error = pig(*arguments, "--segment", "shots", "--min-shot", 2, "--max-shot", 4)
    assert status == 0, error
    expected = {"a.mp4": [(0, 3), (3, 5.25), (5.25, 7.5), (7.5, 10)], "b.mp4": [(None, None)]}
    assert segments_of("v.lance") == expected
    write_film(films / "c.mp4", 30, 25)
    (films / "b.mp4").unlink()
    (films / "a.srt").write_text("1\n00:00:04,000 --> 00:00:05,000\nblue\n")
    status, output, error = pig(*arguments, "--prune", "--subtitles")
    assert status == 0 and "indexed 1 new, 0 changed, 1 unchanged, 0 failed, 1 removed" in output, error
    del expected["b.mp4"]
    assert segments_of("v.lance") == expected | {"c.mp4": [(0, 3), (3, 5.5)]}
    found = pig("search", "blue", "--index", "v.lance", "--where", "subtitles = 'blue'")[1].splitlines()
    assert len(found) == 2 and "0:03–0:05.2" in found[1]
    assert "0:03–0:05.2" in pig("search", "blue", "--index", "v.lance")[1]
    assert pig("export", "--index", "v.lance", "--output", "v.parquet")[0] == 0
    assert pig("import", "v.parquet", "--index", "copy.lance")[0] == 0
    assert VideoIndex("v.lance").info.shots == VideoIndex("copy.lance").info.shots == (2, 4)


def test_other_settings_are_given_in_each_run(pig, films, model_folder):
    arguments = ("index", films / "a.mp4", "--model", model_folder, "--index", "v.lance")
    assert pig(*arguments)[0] == 0 and segments_of("v.lance") == {"a.mp4": [(None, None)]}
    status, _, error = pig(*arguments, "--segment", "shots", "--again", "duration > 5")
    assert status == 0 and "note: the index was made with segments of one length" in error
    assert segments_of("v.lance") == {"a.mp4": [(0, 3), (3, 7.5), (7.5, 10)]}
    assert VideoIndex("v.lance").info.shots is None


def test_options_that_do_not_fit(pig, films, model_folder):
    arguments = ("index", films, "--model", model_folder, "--index", "v.lance")
    assert_one_line_error(pig(*arguments, "--segment", "scenes"), "--segment is 'scenes': give seconds, or shots")
    assert_one_line_error(pig(*arguments, "--max-shot", 5), "add --segment shots")
    assert_one_line_error(pig(*arguments, "--segment", "shots", "--overlap", 1), "leave out --overlap")
    assert_one_line_error(pig(*arguments, "--segment", "shots", "--max-shot", 3), "at least twice that")


def test_missing_detector_is_named_before_the_work(pig, films, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    arguments = ("index", films, "--model", model_folder, "--index", "v.lance", "--segment", "shots")
    assert_one_line_error(pig(*arguments), pip_install("shots"))
    assert not Path("v.lance").exists()
