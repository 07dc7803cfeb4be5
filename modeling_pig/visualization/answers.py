"""Draws ranked answers: a row of middle frames a sentence, the right one framed."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..stores.index import SearchResult
from ..video_decoding_pig import VideoDecodingError, decode_video


def draw_answers(
    answers: Mapping[str, Sequence[SearchResult]],
    output: str | Path,
    captions: Mapping[str, str] | None = None,
    right: Mapping[str, str] | None = None,
    columns: int = 5,
) -> None:
    """Writes one picture: for each sentence the middle frames of its best videos, with rank, score and caption.

    Args:
        answers (`Mapping[str, Sequence[SearchResult]]`): results by sentence, best first.
        output (`str` or `Path`): the picture; its ending chooses the format (png, pdf, svg).
        captions (`Mapping[str, str]`, *optional*): a caption for each path.
        right (`Mapping[str, str]`, *optional*): the path of the right video for each sentence.
        columns (`int`): videos a sentence.
    """
    from matplotlib.figure import Figure

    captions, right = captions or {}, right or {}
    figure = Figure(figsize=(2.4 * columns, 3.6 * len(answers)), layout="constrained")
    rows = figure.subfigures(len(answers), 1, squeeze=False)[:, 0]
    for row, (sentence, results) in zip(rows, answers.items(), strict=True):
        row.suptitle(f"“{sentence}”", fontsize=12, fontweight="bold")
        row.set_facecolor("white")
        for axes, result in zip(row.subplots(1, columns), results, strict=False):
            try:
                frames, _ = decode_video(result.path, num_frames=1)
                axes.imshow(frames[0])
            except VideoDecodingError:  # moved or deleted since it was indexed: the answer still has its place
                axes.text(0.5, 0.5, "file cannot\nbe read", ha="center", va="center", transform=axes.transAxes)
            is_right = right.get(sentence) == result.path
            axes.set_title(
                f"{'✓ ' if is_right else ''}{result.rank}.  {result.score:.3f}\n{Path(result.path).name}",
                fontsize=9,
                color="green" if is_right else "black",
            )
            caption = textwrap.shorten(captions.get(result.path, ""), 150, placeholder=" …")
            axes.set_xlabel(textwrap.fill(caption, 34), fontsize=7)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="green" if is_right else "lightgrey", linewidth=4 if is_right else 1)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


__all__ = ["draw_answers"]
