"""Find the seconds of a found segment that a sentence describes best, from short clips of that segment."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from ..encoding.encoder import Encoder
from ..encoding.reranker import Reranker
from ..encoding.videos import encode_files
from ..stores.results import Moment, SearchResult
from ..video_file_pig import VideoDecodingError, VideoDecodingWarning


CLIP_LENGTH = 2.0  # seconds of a clip that is compared with the sentence
CLIP_STEP = 1.0  # seconds between the starts of two clips
MAX_CLIPS = 60  # per segment: clips of a longer segment start further apart
# A moment extends from the best clip over the clips beside it whose scores reach this share of the way from the median
# score of the segment to the best one.
KEPT_RISE = 0.7


def find_moments(
    encoder: Encoder,
    query_embeddings: np.ndarray,
    ranked: Sequence[Sequence[SearchResult]],
    reranker: Reranker | None = None,
    keep_spans: bool = False,
) -> list[list[SearchResult]]:
    """Add to each result the moment of its segment that the query describes best.

    Each distinct segment is decoded once, in clips of 2 s that start every second, and each clip is encoded as a video
    is: a segment of 30 s costs as much as 29 videos. Folders of frames have no times, and get no moment.

    Args:
        encoder (`Encoder`): model that made the index.
        query_embeddings (`np.ndarray` of shape `(Q, D)`): normalised embeddings of the queries.
        ranked (`Sequence[Sequence[SearchResult]]`): results of each query.
        reranker (`Reranker`, *optional*): interaction of the model, for a `single_tower`.
        keep_spans (`bool`): let a moment be the whole segment, with its best seconds: for shots.

    Returns:
        `list[list[SearchResult]]`: the same results in the same order, with `moment`.

    Warns:
        VideoDecodingWarning: a video cannot be decoded; its results have no moment.
    """
    queries = np.asarray(query_embeddings, dtype=np.float32)  # (Q, D)
    refined = [list(results) for results in ranked]
    places = [(query, place) for query, results in enumerate(refined) for place in range(len(results))]

    def segment_of(place: tuple[int, int]) -> tuple[str, float, float]:
        result = refined[place[0]][place[1]]
        return result.path, result.start or 0.0, math.inf if result.end is None else result.end

    for segment, same in groupby(sorted(places, key=segment_of), segment_of):
        if (scored := _score_clips(encoder, reranker, queries, *segment)) is None:
            continue
        clips, scores = scored
        for query, place in same:
            moment = choose_moment(clips, scores[query])
            if keep_spans:
                moment = moment._replace(start=clips[0][0], end=clips[-1][1])
            refined[query][place] = replace(refined[query][place], moment=moment)
    return refined


def _score_clips(
    encoder: Encoder, reranker: Reranker | None, queries: np.ndarray, path: str, start: float, end: float
) -> tuple[list[tuple[float, float]], np.ndarray] | None:
    """Return N clips of a segment as (start, end), and their scores for Q queries, `(Q, N)`; `None` on failure."""
    if os.path.isdir(path):
        return None
    failures: list[VideoDecodingError] = []
    files = encode_files(
        encoder,
        [path],
        failures,
        lambda duration: [(None, None)] if duration is None else [*split_into_clips(start, min(end, duration))],
        num_threads=1,
        with_context=reranker is not None,
    )
    encoded = next(files, None)
    if encoded is None:
        warnings.warn(f"{failures[0]}; its results have no moment", VideoDecodingWarning, stacklevel=4)
        return None
    clips = [(s.start, s.end) for s in encoded.segments if s.start is not None and s.end is not None]
    if not clips:  # the file has no times
        return None
    if reranker is None or encoded.context_embeds is None:
        return clips, queries @ encoded.embeddings.numpy().T
    context = encoded.context_embeds.float().numpy()
    return clips, np.stack([reranker(query, context) for query in queries])


def split_into_clips(start: float, end: float) -> list[tuple[float, float]]:
    """Return the clips of a segment as (start, end), in seconds: the first begins and the last ends with it."""
    if end - start <= CLIP_LENGTH:
        return [(start, end)]
    num_clips = min(math.ceil((end - start - CLIP_LENGTH) / CLIP_STEP - 1e-6) + 1, MAX_CLIPS)
    starts = np.linspace(start, end - CLIP_LENGTH, num_clips)
    return [(round(float(first), 3), round(float(first + CLIP_LENGTH), 3)) for first in starts]


def choose_moment(clips: Sequence[tuple[float, float]], scores: np.ndarray) -> Moment:
    """Return the moment around the best of N clips, by their scores, `(N,)`."""
    best = first = last = int(scores.argmax())
    median = float(np.median(scores))
    least = median + KEPT_RISE * (float(scores[best]) - median)
    while first > 0 and scores[first - 1] >= least:
        first -= 1
    while last < len(clips) - 1 and scores[last + 1] >= least:
        last += 1
    return Moment(clips[first][0], clips[last][1], sum(clips[best]) / 2, float(scores[best]))


__all__ = ["choose_moment", "find_moments", "split_into_clips"]
