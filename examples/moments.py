"""Measure how often a search names the right shot of a film: for windows of the clock, for shots, and refined.

    python examples/moments.py --model runs/demo/model --json runs/moments.json

Draws films of 20 shots of 2 to 20 s from the validation split of `moving_shapes`, and indexes them in each way. Each
shot is searched by a caption among all films of one seed. A caption counts as answered if the first result is of the
right film, and its time overlaps the shot by at least half of their union.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from modeling_pig import VideoIndex, VideoSearcher
from modeling_pig.benchmarks.moving_shapes import make_captions, make_scene
from modeling_pig.benchmarks.shapes_drawing import FPS, FRAME_SIZE, NUM_FRAMES, draw_scene
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.encoding.video_segment import ShotRule
from modeling_pig.retrieval.indexing import index_videos
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.stores.index import IndexInfo
from modeling_pig.stores.results import SearchResult


SHORTEST, LONGEST = 2.0, 20.0  # seconds of a shot
MIN_OVERLAP = 0.5
WAYS = {"windows of 30 s": Segmentation(30), "windows of 5 s": Segmentation(5), "shots": ShotRule()}

Shot = tuple[str, float, float]  # film, start and end in seconds


def draw_film(path: Path, first: int, num_shots: int, rng: np.random.Generator) -> list[Shot]:
    """Draw a film of scenes, from number `first` on, each slowed down to fill its shot; return the shots."""
    shots, start = [], 0
    with av.open(path, "w") as container:
        options = {"preset": "veryfast", "crf": "16", "threads": "1", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(first, first + num_shots):
            length = round(FPS * float(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST)))))  # frames
            scene = draw_scene(make_scene("validation", number))
            for position in range(length):
                image = scene[position * NUM_FRAMES // length]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            shots.append((str(path), start / FPS, (start + length) / FPS))
            start += length
        container.mux(stream.encode())
    return shots


def overlap(result: SearchResult, shot: Shot) -> float:
    """Return the time that a result shares with a shot, divided by the time of both."""
    path, start, end = shot
    found_start, found_end = result.span
    found_start, found_end = found_start or 0.0, result.duration if found_end is None else found_end
    if result.path != path or found_end is None:
        return 0.0
    shared = max(min(end, found_end) - max(start, found_start), 0)
    return shared / (end - start + found_end - found_start - shared)


def measure(model: str, num_films: int, num_shots: int, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return the shares of answered captions, in percent, of the films of a seed."""
    rng = np.random.default_rng(seed)
    first = 10_000 * (seed + 1)  # scenes that no training saw
    shots = []
    for film in range(num_films):
        shots += draw_film(folder / f"film_{film}.mp4", first + film * num_shots, num_shots, rng)
    captions = [make_captions("validation", first + number)[0] for number in range(len(shots))]
    encoder = load_encoder(model)
    figures = {}
    for name, rule in WAYS.items():
        lengths = (rule.min_length, rule.max_length) if isinstance(rule, ShotRule) else None
        info = IndexInfo(model, encoder.fingerprint, encoder.embedding_dim, encoder.num_frames, shots=lengths)
        index = VideoIndex(folder / f"{name.replace(' ', '_')}.lance", info)
        index_videos(encoder, index, folder / "*.mp4", segmentation=rule)
        searcher = VideoSearcher.from_pretrained(model, index.uri)
        for refine in (False, True):
            found = [results[0] for results in searcher.search(captions, k=1, refine=refine)]
            pairs = list(zip(found, shots, strict=True))
            figures[f"{name}, refined" if refine else name] = {
                "film": 100 * statistics.mean(result.path == shot[0] for result, shot in pairs),
                "shot": 100 * statistics.mean(overlap(*pair) >= MIN_OVERLAP for pair in pairs),
                "entries": len(index),
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how often a search names the right shot of a film.")
    parser.add_argument("--model", required=True, help="model that ranks moving shapes, as `make demo` trains it")
    parser.add_argument("--films", type=int, default=5, help="films per seed")
    parser.add_argument("--shots", type=int, default=20, help="shots per film")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the films")
    parser.add_argument("--json", type=Path, help="file to write with the figures of each seed")
    args = parser.parse_args()
    by_seed = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            by_seed.append(measure(os.path.abspath(args.model), args.films, args.shots, seed, Path(folder).resolve()))
    table = Table(box=None, pad_edge=False)
    for column in ("segments", "entries", "right film %", "right shot %"):
        table.add_column(column, justify="left" if column == "segments" else "right")
    for name in by_seed[0]:
        cells = []
        for key in ("entries", "film", "shot"):
            values = [figures[name][key] for figures in by_seed]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(
                f"{statistics.mean(values):.0f}"
                if key == "entries"
                else f"{statistics.mean(values):.1f} ± {spread:.1f}"
            )
        table.add_row(name, *cells)
    Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps({"seeds": args.seeds, "figures": by_seed}, indent=2) + "\n")


if __name__ == "__main__":
    main()
