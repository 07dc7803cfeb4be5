"""Explanations as JSON, which the page draws: frames with the selected patches, and times that fit a query best."""

import base64
import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..encoding.encoder import Encoder
from ..encoding.video_segment import VideoSegment
from ..encoding.videos import encode_file


if TYPE_CHECKING:
    from ..visualization.tokens import VideoExplanation


FRAME_SIDE = 480  # pixels of the longer side
NUM_TIMES, MIN_TIME = 12, 1.0  # parts of a segment that are scored, and seconds of the shortest


def describe_explanation(explanation: "VideoExplanation") -> dict[str, Any]:
    """Convert an explanation to JSON.

    Returns:
        `dict` with

        - `frames`: one `dict` per frame: `picture` (WebP as a `data:` URL), `number` in the video, `time` in seconds
          or `None`, and `patches`: the selected patches as `x`, `y` of the upper left corner, in shares of the width
          and height of the frame, and `phrase`: position in `phrases`, or `None`.
        - `patch`: `width` and `height` of a patch, in shares of the frame.
        - `phrases`: the phrases of the query as `text`, and `count`: number of patches that fit the phrase.
        - `selected`: number of selected patches; `None` for a model that selects none. The pictures then show the
          attention: what has less is darker.
    """
    num_rows, num_columns = explanation.attention.shape[1:]
    selected, matches = explanation.selected_patches, explanation.matches
    patches: list[list[dict[str, Any]]] = [[] for _ in explanation.frames]
    counts = [0] * len(explanation.phrases)
    if selected is not None and matches is not None:
        for patch, phrase in zip(selected.tolist(), matches.tolist(), strict=True):
            frame, position = divmod(patch, num_rows * num_columns)
            row, column = divmod(position, num_columns)
            is_matched = phrase >= 0  # NO_PHRASE is -1
            if is_matched:
                counts[phrase] += 1
            patches[frame].append(
                {"x": column / num_columns, "y": row / num_rows, "phrase": phrase if is_matched else None}
            )
    times: list[float | None] = [None] * len(explanation.frames)
    if explanation.frame_times:
        times = [*explanation.frame_times]
    highest = float(explanation.attention.max()) or 1.0
    frames = []
    for number, frame in enumerate(explanation.frames):
        shares = None if selected is not None else explanation.attention[number] / highest
        frames.append(
            {
                "picture": _picture(frame, shares),
                "number": explanation.frame_numbers[number] if explanation.frame_numbers else number,
                "time": times[number],
                "patches": patches[number],
            }
        )
    return {
        "frames": frames,
        "patch": {"width": 1 / num_columns, "height": 1 / num_rows},
        "phrases": [
            {"text": phrase.text, "count": count} for phrase, count in zip(explanation.phrases, counts, strict=True)
        ],
        "selected": None if selected is None else len(selected),
    }


def _picture(frame: np.ndarray, shares: np.ndarray | None) -> str:
    """Return a frame, `(height, width, 3)`, as a `data:` URL; `shares`, `(rows, columns)` in [0, 1], darken it."""
    import PIL.Image

    image = PIL.Image.fromarray(frame)
    image.thumbnail((FRAME_SIDE, FRAME_SIDE))
    if shares is not None:
        light = PIL.Image.fromarray((255 * (0.2 + 0.8 * shares)).astype(np.uint8)).resize(image.size)
        image = PIL.Image.composite(image, PIL.Image.new("RGB", image.size), light)
    output = io.BytesIO()
    image.save(output, "WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(output.getvalue()).decode()}"


def score_times(encoder: Encoder, segment: VideoSegment, text: str) -> list[dict[str, float]]:
    """Score equal parts of a segment by a query: up to `NUM_TIMES` parts of `MIN_TIME` seconds or more.

    Returns:
        `list[dict]`: `start` and `end` of each part, in seconds, and `score`, the cosine; empty if the video is too
        short or has no duration.

    Raises:
        VideoDecodingError: the file cannot be decoded.
    """
    parts: list[tuple[float, float]] = []

    def split(duration: float | None) -> list[tuple[float | None, float | None]]:
        if duration is not None:
            start = segment.start or 0.0
            end = duration if segment.end is None else min(segment.end, duration)
            edges = np.linspace(start, end, max(min(NUM_TIMES, int((end - start) / MIN_TIME)), 1) + 1).tolist()
            parts[:] = pairwise(edges)  # `split` is called more than once
        return list(parts) if len(parts) > 1 else [(segment.start, segment.end)]

    embeddings = encode_file(encoder, segment.path, split).embeddings
    if len(parts) < 2:
        return []
    scores = (embeddings @ encoder.encode_texts([text])[0]).tolist()
    return [{"start": start, "end": end, "score": score} for (start, end), score in zip(parts, scores, strict=True)]


__all__ = ["describe_explanation", "score_times"]
