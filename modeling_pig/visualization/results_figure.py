"""Draw search results: one row of middle frames per query, with a border around the correct video."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..remote import open_source
from ..stores.results import SearchResult
from ..video_decoding_pig import VideoDecodingError, decode_video


def draw_results(
    results: Mapping[str, Sequence[SearchResult]],
    output: str | Path,
    captions: Mapping[str, str] | None = None,
    correct: Mapping[str, str] | None = None,
    columns: int = 5,
) -> None:
    """Draw one picture: for each query the middle frames of its best videos, with rank, score and caption.

    Args:
        results (`Mapping[str, Sequence[SearchResult]]`): results by query, best first.
        output (`str` or `Path`): file to write; its suffix chooses the format (png, pdf, svg).
        captions (`Mapping[str, str]`, *optional*): caption by path of the video.
        correct (`Mapping[str, str]`, *optional*): path of the correct video by query.
        columns (`int`, *optional*, defaults to 5): videos per query.
    """
    from matplotlib.figure import Figure

    captions, correct = captions or {}, correct or {}
    figure = Figure(figsize=(2.4 * columns, 3.6 * len(results)), layout="constrained")
    rows = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    for row, (query, of_query) in zip(rows, results.items(), strict=True):
        row.suptitle(f"“{query}”", fontsize=12, fontweight="bold")
        row.set_facecolor("white")
        for axes, result in zip(row.subplots(1, columns), of_query, strict=False):
            try:
                with open_source(result.path) as source:
                    frames, _ = decode_video(source, num_frames=1)
                axes.imshow(frames[0])
            except VideoDecodingError:  # moved or deleted since it was indexed
                axes.text(0.5, 0.5, "file cannot\nbe read", ha="center", va="center", transform=axes.transAxes)
            is_correct = correct.get(query) == result.path
            axes.set_title(
                f"{'✓ ' if is_correct else ''}{result.rank}.  {result.score:.3f}\n{Path(result.path).name}",
                fontsize=9,
                color="green" if is_correct else "black",
            )
            caption = textwrap.shorten(captions.get(result.path, ""), 150, placeholder=" …")
            axes.set_xlabel(textwrap.fill(caption, 34), fontsize=7)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="green" if is_correct else "lightgrey", linewidth=4 if is_correct else 1)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


__all__ = ["draw_results"]
