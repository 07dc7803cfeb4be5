"""Moments: the seconds of a found segment that fit a query best."""

import csv
import io
import json
import os
import warnings

import numpy as np
import pytest
import torch

from modeling_pig import VideoSearcher
from modeling_pig.encoding.encoder import EncodedClips, Encoder
from modeling_pig.retrieval.moments import choose_moment, find_moments, split_into_clips
from modeling_pig.stores.results import SearchResult
from modeling_pig.video_file_pig import VideoDecodingWarning

from .cli_helpers import assert_one_line_error
from .video_files import numbered_frames, read_numbers, write_frame_folder, write_video


class LateEncoder(Encoder):
    """An encoder whose clips point at their middle: at 0 degrees at the start of the video, at 90 after 10 s."""

    kind, embedding_dim, num_frames = "late", 2, 3

    device = torch.device("cpu")

    def __init__(self):
        self._decoder = "pyav"
        self.num_clips = 0

    def preprocess(self, frames, metadata=None):
        return np.mean(read_numbers(frames))

    def _encode_part(self, clips):
        self.num_clips += len(clips)
        angles = torch.tensor(np.array(clips)) / 100 * np.pi / 2  # 10 frames per second
        return EncodedClips(torch.stack([angles.cos(), angles.sin()], dim=1).float())

    def encode_texts(self, texts, max_tokens=None):
        raise NotImplementedError


@pytest.fixture
def film(tmp_path) -> str:
    return str(write_video(tmp_path / "film.mp4", numbered_frames(100), fps=10))


def direction(seconds: float) -> np.ndarray:
    """Return the embedding, `(1, 2)`, of the moment at this time."""
    return np.array([[np.cos(seconds * np.pi / 20), np.sin(seconds * np.pi / 20)]])


@pytest.mark.parametrize("start, end, expected", [(None, None, 3.0), (2.0, 8.0, 3.0), (4.0, 8.0, 5.0), (6, 7.5, 6.75)])
def test_best_seconds_of_a_segment(film, start, end, expected):
    encoder = LateEncoder()
    [[result]] = find_moments(encoder, direction(3.0), [[SearchResult(1, 0.5, film, 10.0, start, end)]])
    moment = result.moment
    assert moment is not None and moment.best == pytest.approx(expected, abs=0.15)
    assert (start or 0) <= moment.start <= moment.best <= moment.end <= (end or 10)
    assert (result.start, result.end, result.score) == (start, end, 0.5) and result.span == (moment.start, moment.end)
    assert moment.score == pytest.approx(1 if expected == 3 else np.cos((expected - 3) * np.pi / 20), abs=1e-2)


def test_moments_of_shots_are_whole_shots(film):
    results = [[SearchResult(1, 0.5, film, 10.0, 2.0, 8.0)]]
    [[result]] = find_moments(LateEncoder(), direction(3.0), results, keep_spans=True)
    assert result.moment[:3] == (2, 8, 3)


def test_each_segment_is_encoded_once(film):
    encoder = LateEncoder()
    results = [SearchResult(1, 0.5, film, 10.0, 0.0, 5.0), SearchResult(2, 0.4, film, 10.0, 5.0, 10.0)]
    ranked = find_moments(encoder, np.concatenate([direction(1.0), direction(9.0)]), [results, results[::-1]])
    assert encoder.num_clips == 2 * 4
    assert [[r.moment.best for r in found] for found in ranked] == [[1, 6], [9, 4]]
    assert [[r.rank for r in found] for found in ranked] == [[1, 2], [2, 1]]


def test_clips_cover_a_segment():
    assert split_into_clips(3.0, 4.0) == [(3.0, 4.0)]
    assert split_into_clips(0.0, 4.0) == [(0, 2), (1, 3), (2, 4)]
    assert split_into_clips(0.0, 4.5) == [(0, 2), (0.833, 2.833), (1.667, 3.667), (2.5, 4.5)]
    many = split_into_clips(0.0, 3600.0)
    assert len(many) == 60 and many[0] == (0, 2) and many[-1] == (3598, 3600)


def test_moments_reach_over_clips_that_fit_nearly_as_well():
    clips = [(second, second + 2) for second in range(7)]
    scores = np.array([0.1, 0.2, 0.8, 0.9, 0.3, 0.1, 0.85])
    assert choose_moment(clips, scores)[:3] == (2, 5, 4)  # the median is 0.3: 0.72 and more belong to the moment
    scores[4] = 0.88  # the median is 0.8: 0.87 and more
    assert choose_moment(clips, scores)[:3] == (3, 6, 4)
    assert choose_moment(clips[:1], scores[:1])[:3] == (0, 2, 1)
    assert choose_moment(clips, np.full(7, 0.5))[:3] == (0, 8, 1)


def test_what_has_no_moment(film, tmp_path):
    results = [
        SearchResult(1, 0.5, str(tmp_path / "gone.mp4"), 10.0, 0.0, 5.0),
        SearchResult(2, 0.5, str(write_frame_folder(tmp_path / "frames", numbered_frames(3))), None),
        SearchResult(3, 0.5, film, 10.0),
    ]
    with pytest.warns(VideoDecodingWarning, match=r"gone.mp4: no such file; its results have no moment"):
        [found] = find_moments(LateEncoder(), direction(5.0), [results])
    assert [result.moment is None for result in found] == [True, True, False]


def test_refined_searches(pig, index, video_folder):
    searcher = VideoSearcher.from_pretrained(None, index)
    plain = searcher.search(["a red circle", "a star"], k=3)
    refined = searcher.search(["a red circle", "a star"], k=3, refine=True)
    for before, after in zip(plain, refined, strict=True):
        assert [(r.path, r.score, r.rank) for r in before] == [(r.path, r.score, r.rank) for r in after]
        assert all(r.moment is not None and (r.moment.start, r.moment.end) == (0, 2) for r in after)
        # One clip of 2 s is the whole video.
        assert [r.moment.score for r in after] == pytest.approx([r.score for r in before], abs=2e-3)
    [grouped, *_] = searcher.search("a red circle", k=2, refine=True, group=True)
    assert grouped.moment is not None
    with pytest.raises(ValueError, match="refine is for sentences"):
        searcher.search_like(video_folder / "video_0.mp4", refine=True)


def test_refined_searches_of_a_single_tower(pig, make_model, processor, video_folder, tmp_path):
    make_model(framework="single_tower").save_pretrained(tmp_path / "single")
    processor.save_pretrained(tmp_path / "single")
    assert pig("index", video_folder, "--model", "single", "--index", "s.lance")[0] == 0
    found = VideoSearcher.from_pretrained(None, "s.lance").search("a red circle", k=3, refine=True)
    assert [r.moment.score for r in found] == pytest.approx([r.score for r in found], abs=5e-3)


def test_command(pig, index, video_folder):
    (video_folder / "video_0.mp4").unlink()
    options = ("search", "a red circle", "--index", index, "--refine-moments")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoDecodingWarning)
        status, output, _ = pig(*options)
        assert status == 0 and output.count("0:00–0:02  0:01  ") == 4
        records = json.loads(pig(*options, "--json")[1])["results"]
        rows = list(csv.DictReader(io.StringIO(pig(*options, "--csv", "-")[1])))
        saved = pig(*options, "--save-clips", "clips", "--html", "page.html")
    for record, row in zip(records, rows, strict=True):
        is_gone = record["path"].endswith("video_0.mp4")
        assert ("moment" in record) != is_gone and row["moment_start"] == ("" if is_gone else "0.0")
    assert saved[0] == 3 and "video_1_0m00s-0m02s.mp4" in os.listdir("clips")
    assert "#t=0,2" in open("page.html").read()
    assert "moment" not in json.loads(pig("search", "a", "--index", index, "--json")[1])["results"][0]
    assert_one_line_error(pig("search", "--video", video_folder / "video_1.mp4", "--index", index, "--refine-moments"))
