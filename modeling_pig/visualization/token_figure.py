"""Draw an explanation: the query with underlined phrases, the selected patches on the frames, the attention."""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from .tokens import NO_PHRASE, VideoExplanation


# Colours of Okabe and Ito, which colour-blind readers can distinguish. White marks patches without a phrase.
PHRASE_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442")
FORMATS = {".png", ".pdf"}
FRAMES_PER_ROW = 12
_HEAT = "inferno"

# Inches
_WIDTH = 11.0  # of a row of frames
_MIN_WIDTH = 6.5  # room for the text if there are few frames
_MAX_FRAME = 2.2
_LEFT, _RIGHT, _EDGE = 0.35, 0.75, 0.15
_GAP = 0.06
_LINE = 0.3  # distance between lines of the query
_SMALL_LINE = 0.19
_LETTER = 0.07  # width of a letter of the small text, rounded up
_DPI = 150
_OUTLINE = 2.2  # points
_QUERY_FONT: dict[str, Any] = {"size": 12, "weight": "bold"}
_SMALL_FONT: dict[str, Any] = {"size": 8}


def draw_explanation(explanation: VideoExplanation, output: str | Path) -> None:
    """Draw an explanation as one picture.

    Above the frames is the query, each phrase underlined in its colour (dotted if no patch matches it). The upper row
    outlines the selected patches in the colours of their phrases, or in white without a phrase; phrases after the
    seventh have no colour. The lower row shows the attention of the class token, on one scale for all frames. Clips of
    more than twelve frames continue in further rows. The nearest captions, if any, are below.

    Args:
        explanation (`VideoExplanation`): explanation from [`explain_video`](tokens.py).
        output (`str` or `Path`): file to write, with the suffix .png or .pdf. Equal explanations give equal files.

    Raises:
        ValueError: `output` has another suffix.
    """
    check_output(output)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    num_frames, height, width = explanation.frames.shape[:3]
    columns = min(num_frames, FRAMES_PER_ROW)
    num_blocks = -(-num_frames // columns)
    frame_width = min(_MAX_FRAME, _WIDTH / columns - _GAP, _MAX_FRAME * width / height)
    frame_height = max(frame_width * height / width, 0.1)
    content = max(columns * (frame_width + _GAP), _MIN_WIDTH)
    figure_width = _LEFT + content + _RIGHT

    words, underlines, num_lines = _lay_out_query(explanation, content)
    legend = textwrap.wrap(_legend(explanation), int(content / _LETTER))
    heading, captions = _caption_lines(explanation, content)
    block_height = 2 * (frame_height + _GAP) + _SMALL_LINE
    figure_height = 2 * _EDGE + num_lines * _LINE + num_blocks * (block_height + _EDGE)
    figure_height += _SMALL_LINE * (len(legend) + len(heading) + len(captions))
    figure = Figure(figsize=(figure_width, figure_height), dpi=_DPI, facecolor="white")

    def to_figure(x: float, y: float) -> tuple[float, float]:
        """Convert inches from the upper left corner to figure coordinates."""
        return x / figure_width, 1 - y / figure_height

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # A user's text may contain dollar signs, which are no formula.
        figure.text(*to_figure(x, y), text, **{"va": "baseline", "parse_math": False, **style})

    def add_axes(x: float, y: float, width: float, height: float) -> Any:
        left, bottom = to_figure(x, y + height)
        return figure.add_axes((left, bottom, width / figure_width, height / figure_height))

    y = _EDGE
    for text, x, line in words:
        write(_LEFT + x, y + (line + 0.6) * _LINE, text, **_QUERY_FONT)
    for phrase, start, end, line in underlines:
        is_matched = explanation.matches is not None and phrase in explanation.matches
        _underline(
            figure,
            to_figure(_LEFT + start, y + (line + 0.78) * _LINE),
            to_figure(_LEFT + end, 0)[0],
            phrase,
            is_matched,
        )
    y += num_lines * _LINE - 0.05
    for line in legend:
        y += _SMALL_LINE
        write(_LEFT, y, line, **_SMALL_FONT, color="0.35")
    y += 0.8 * _EDGE

    highest = max(float(explanation.attention.max()), 1.0)
    for first in range(0, num_frames, columns):
        y += _SMALL_LINE
        for frame in range(first, min(first + columns, num_frames)):
            x = _LEFT + (frame - first) * (frame_width + _GAP)
            write(x, y - 0.04, f"frame {explanation.frame_numbers[frame]}", fontsize=7, color="0.35")
            picture = _shrink(explanation.frames[frame], round(2 * _DPI * frame_width))
            _draw_selection(add_axes(x, y, frame_width, frame_height), explanation, frame, picture, frame_width)
            axes = add_axes(x, y + frame_height + _GAP, frame_width, frame_height)
            _draw_attention(axes, explanation.attention[frame], picture, highest)
        labels = (("selected", y), ("attention", y + frame_height + _GAP))
        for label, top in labels if explanation.selected_patches is not None else labels[1:]:
            middle = top + frame_height / 2
            write(_LEFT - 0.08, middle, label, fontsize=8, rotation=90, va="center", ha="right")
        if first == 0:
            x = _LEFT + columns * (frame_width + _GAP)
            bar_axes = add_axes(x, y + frame_height + _GAP, 0.1, frame_height)
            figure.colorbar(ScalarMappable(Normalize(0, highest), _HEAT), cax=bar_axes)
            bar_axes.tick_params(labelsize=7, length=2)
        y += block_height - _SMALL_LINE + _EDGE
    for lines, colour in ((heading, "0.35"), (captions, "black")):
        for line in lines:
            y += _SMALL_LINE
            write(_LEFT, y, line, **_SMALL_FONT, color=colour)

    Path(output).parent.mkdir(parents=True, exist_ok=True)
    # By default a PDF contains its creation time, so that equal explanations would give different files.
    figure.savefig(output, dpi=_DPI, metadata={"CreationDate": None} if _suffix(output) == ".pdf" else None)


def check_output(output: str | Path) -> None:
    """Raise a `ValueError` if the suffix of `output` is not a supported format."""
    if _suffix(output) not in FORMATS:
        raise ValueError(f"{output} ends in {_suffix(output) or 'nothing'}: a picture is written as .png or .pdf.")


def _suffix(output: str | Path) -> str:
    return Path(output).suffix.lower()


def _ruler(**font: Any) -> Callable[[str], float]:
    """Return a function that measures the width of a text in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    renderer = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=_DPI)).get_renderer()  # its size does not matter
    properties = FontProperties(**font)
    return lambda text: renderer.get_text_width_height_descent(text, properties, ismath=False)[0] / _DPI


def _lay_out_query(explanation: VideoExplanation, content: float) -> tuple[list, list, int]:
    """Break the query into lines of `content` inches.

    Returns:
        Words as (text, x, line), underlines as (phrase, start, end, line), with x in inches; and the number of lines.
    """
    measure = _ruler(**_QUERY_FONT)
    owner: dict[int, tuple[int, int]] = {}  # character position in the query -> (phrase, start of its span)
    if explanation.matches is not None:
        for number, phrase in enumerate(explanation.phrases[: len(PHRASE_COLOURS)]):
            for start, end in phrase.spans:
                owner |= dict.fromkeys(range(start, end), (number, start))
    words: list[tuple[str, float, int]] = []
    lines_of: dict[tuple[int, int, int], tuple[float, float]] = {}  # (phrase, start, line) -> (left, right)
    x, line = 0.0, 0
    for match in re.finditer(r"\S{1,30}", explanation.query):
        text, start = match.group(), match.start()
        if start > 0 and explanation.query[start - 1] == " ":
            x += measure("n n") - measure("nn")
        if x > 0 and x + measure(text) > content:
            x, line = 0.0, line + 1
        words.append((text, x, line))
        for offset in range(len(text)):
            if start + offset in owner:
                key = (*owner[start + offset], line)
                begin, _ = lines_of.get(key, (x + measure(text[:offset]), 0))
                lines_of[key] = (begin, x + measure(text[: offset + 1]))
        x += measure(text)
    underlines = [(number, begin, end, line) for (number, _, line), (begin, end) in lines_of.items()]
    return words, underlines, line + 1


def _underline(figure: Any, start: tuple[float, float], end: float, phrase: int, is_matched: bool) -> None:
    from matplotlib.lines import Line2D

    style: Any = "-" if is_matched else (0, (1, 1.5))
    line = Line2D((start[0], end), (start[1], start[1]), color=PHRASE_COLOURS[phrase], linewidth=3.5, linestyle=style)
    line.set_solid_capstyle("butt")
    figure.add_artist(line)


def _legend(explanation: VideoExplanation) -> str:
    score = f"similarity of query and video: {explanation.score:.3f}"
    if explanation.matches is None:
        return f"{score};  attention of the class token in multiples of an even share"
    num_matched = int((explanation.matches != NO_PHRASE).sum())
    return (
        f"{score};  {len(explanation.matches)} of {explanation.attention.size} patches selected, {num_matched} fit a "
        "phrase (white: none);  attention of the class token in multiples of an even share"
    )


def _caption_lines(explanation: VideoExplanation, content: float) -> tuple[list[str], list[str]]:
    """Return the lines of the heading, and one line per caption, shortened to `content` inches."""
    if not explanation.expected:
        return [], []
    heading = (
        f"Queries that the model expected: the nearest of {explanation.num_captions:,} captions to its "
        f"pseudo-query, by cosine (the query's is {explanation.query_cosine:.3f})"
    )
    measure = _ruler(**_SMALL_FONT)
    lines = []
    for caption, cosine in explanation.expected:
        line = f"{cosine:.3f}  {caption}"
        if measure(line) > content:
            shorter = (line[:length].rstrip() + " …" for length in range(min(len(line), 400), 0, -1))
            line = next(text for text in shorter if measure(text) <= content)
        lines.append(line)
    return textwrap.wrap(heading, int(content / _LETTER)), lines


def _shrink(frame: np.ndarray, width: int) -> np.ndarray:
    """Scale a frame down to `width` pixels: a PDF would store every pixel of a large video."""
    picture = PIL.Image.fromarray(frame)
    picture.thumbnail((width, picture.height), PIL.Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _draw_selection(axes: Any, explanation: VideoExplanation, frame: int, picture: np.ndarray, inches: float) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    num_rows, num_columns = explanation.attention.shape[1:]
    axes.imshow(picture, extent=(0, num_columns, num_rows, 0), aspect="auto")
    _clear(axes)
    if explanation.selected_patches is None or explanation.matches is None:
        return
    patch_width = 72 * inches / num_columns  # points
    linewidth = min(_OUTLINE, 0.15 * patch_width)
    inset = linewidth / patch_width  # so that outlines of neighbouring patches do not overlap
    for patch, phrase in zip(explanation.selected_patches, explanation.matches, strict=True):
        if patch // (num_rows * num_columns) == frame:
            row, column = divmod(patch % (num_rows * num_columns), num_columns)
            has_colour = phrase != NO_PHRASE and phrase < len(PHRASE_COLOURS)
            outline = Rectangle(
                (column + inset, row + inset),
                1 - 2 * inset,
                1 - 2 * inset,
                fill=False,
                edgecolor=PHRASE_COLOURS[phrase] if has_colour else "white",
                linewidth=linewidth if has_colour else 0.6 * linewidth,
            )
            # A dark line around the bright one is visible on any background.
            outline.set_path_effects([Stroke(linewidth=1.5 * linewidth, foreground="black"), Normal()])
            axes.add_patch(outline)


def _draw_attention(axes: Any, attention: np.ndarray, picture: np.ndarray, highest: float) -> None:
    extent = (0, attention.shape[1], attention.shape[0], 0)
    grey = picture.max(axis=2)  # in luminance, blue objects would be almost black
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
    axes.imshow(attention, cmap=_HEAT, vmin=0, vmax=highest, alpha=0.6, extent=extent, aspect="auto")
    _clear(axes)


def _clear(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_linewidth(0.3)


__all__ = ["PHRASE_COLOURS", "check_output", "draw_explanation"]
