"""Test the figure of ranks: its curves equal the record and the random baseline, and no texts overlap."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modeling_pig.evaluation.metrics import recall_curves
from modeling_pig.visualization.ranks import draw_ranks


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Return a function that draws the ranks of a model in a gallery of `num_videos`, and returns the saved figure."""
    figures = []
    save = Figure.savefig

    def savefig(figure, *arguments, **options):
        save(figure, *arguments, **options)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)

    def draw(num_videos: int, directions=("text_to_video", "video_to_text"), missing: int = 0) -> Figure:
        generator = np.random.default_rng(0)
        ranks = {name: np.ceil(num_videos ** generator.random(50)) for name in directions}
        record = {"benchmark": "shapes_$a$", "split": "test", "num_queries": 1200, "num_videos": num_videos}
        record |= {"num_videos_in_split": num_videos + missing, "recall_curve": recall_curves(ranks, num_videos)}
        draw_ranks(record, tmp_path / "ranks.png")
        assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
        figure = figures.pop()
        figure.record = record
        return figure

    return draw


def test_both_directions_and_random_order_are_drawn(draw):
    figure = draw(300, missing=3)
    (axes,) = figure.axes
    text_to_video, video_to_text, chance = axes.lines
    curves = figure.record["recall_curve"]
    for line, name in ((text_to_video, "text_to_video"), (video_to_text, "video_to_text")):
        assert line.get_xdata().tolist() == curves["k"] and line.get_ydata().tolist() == curves[name]
    assert chance.get_ydata() == pytest.approx(chance.get_xdata() / 3)
    assert (chance.get_xdata()[0], chance.get_xdata()[-1]) == (1, pytest.approx(300))
    assert axes.get_xscale() == "log"
    assert axes.get_title() == "shapes_$a$, test\n1,200 queries, 300 of 303 videos"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["text-to-video", "video-to-text", "random order"]


def test_dual_softmax_is_dashed_and_in_the_legend(draw):
    names = ["text_to_video", "video_to_text", "text_to_video_dual_softmax", "video_to_text_dual_softmax"]
    lines = draw(300, names).axes[0].lines
    assert [line.get_label() for line in lines][2] == "text-to-video, dual softmax"
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--", "--", "-"]
    assert lines[0].get_color() == lines[2].get_color() != lines[1].get_color() == lines[3].get_color()


@pytest.mark.parametrize(
    ("num_videos", "dual_softmax"), [(1, True), (2, False), (300, True), (2990, False), (10_000, True), (10**6, False)]
)
def test_labels_do_not_overlap(draw, num_videos, dual_softmax):
    names = ["text_to_video", "video_to_text"]
    names += [f"{name}_dual_softmax" for name in names] if dual_softmax else []
    figure = draw(num_videos, names)
    (axes,) = figure.axes
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks = [label for label in axes.get_xticklabels() if label.get_text()]
    assert ticks[0].get_text() == "1"
    parts = [*ticks, axes.xaxis.label, axes.yaxis.label, axes.title, figure.legends[0]]
    for one, other in itertools.combinations([part.get_window_extent(renderer) for part in parts], 2):
        assert not one.overlaps(other)
    for part in (axes.title, figure.legends[0]):
        box = part.get_window_extent(renderer)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not box.overlaps(axes.get_window_extent(renderer))
