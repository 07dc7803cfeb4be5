"""Measure on drawn videos how well stored embeddings tell copies of a video from videos that are merely similar.

    python examples/measure_duplicates.py --model runs/demo/model --json duplicates.json

Copies are encoded again in other containers, sizes, qualities and frame rates, or lack a part at the start or the end.
Similar videos differ in one attribute of one shape, or show the same shapes elsewhere. Films of ten scenes are indexed
in segments of one scene. A limit is chosen on the videos of one seed, and measured on those of another.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from modeling_pig import VideoIndex
from modeling_pig.benchmarks.moving_shapes import make_scene, redraw_scene, twin_of
from modeling_pig.benchmarks.shapes_drawing import FPS, GROUNDS, NUM_FRAMES, Scene, draw_scene
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.files import write_text
from modeling_pig.retrieval.duplicates import MIN_COSINE, read_files, similarity
from modeling_pig.retrieval.indexing import index_videos
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.stores.index import IndexInfo


VALIDATION_SEED, TEST_SEED = 101, 202
SCENES_PER_FILM, SCENE_SECONDS = 10, NUM_FRAMES / FPS
# Kind of copy -> container, codec, pixels of a side, quality, and the frames that stay.
COPIES = {
    "webm, VP9": ("webm", "libvpx-vp9", 96, {"crf": "32", "b:v": "0"}, slice(None)),
    "avi, MPEG-4, twice the size": ("avi", "mpeg4", 192, {"q:v": "5"}, slice(None)),
    "mkv, two thirds of the size": ("mkv", "libx264", 64, {"crf": "23"}, slice(None)),
    "mov, low bit rate": ("mov", "libx264", 96, {"crf": "40"}, slice(None)),
    "mp4, half the frames": ("mp4", "libx264", 96, {"crf": "23"}, slice(None, None, 2)),
    "start cut off": ("mp4", "libx264", 96, {"crf": "23"}, slice(3, None)),
    "end cut off": ("mp4", "libx264", 96, {"crf": "23"}, slice(None, -3)),
}
FILM_COPIES = {
    "film: webm, VP9, two thirds of the size": ("webm", "libvpx-vp9", 64, {"crf": "32", "b:v": "0"}, slice(None)),
    "film: a whole scene cut off at the end": ("mp4", "libx264", 96, {"crf": "23"}, slice(None, -NUM_FRAMES)),
    "film: a scene and a half cut off at the start": (
        *("mp4", "libx264", 96, {"crf": "23"}),
        slice(NUM_FRAMES * 3 // 2, None),
    ),
}


def write(frames: np.ndarray, path: Path, codec: str, side: int, options: dict[str, str], fps: int = FPS) -> None:
    """Encode frames (T, H, W, 3), scaled to squares."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def draw(scenes: list[Scene]) -> np.ndarray:
    return np.concatenate([draw_scene(scene) for scene in scenes])


def write_pairs(folder: Path, num_videos: int, seed: int) -> Iterator[tuple[str, bool, Path, Path]]:
    """Write videos; yield pairs of them with their kind, and whether one is a copy of the other."""
    scenes = [make_scene("test", number, seed) for number in range(num_videos)]
    films = [scenes[first : first + SCENES_PER_FILM] for first in range(0, num_videos, SCENES_PER_FILM)]
    films = [film for film in films if len(film) == SCENES_PER_FILM]
    for name, originals, copies in (("", [[scene] for scene in scenes], COPIES), ("film_", films, FILM_COPIES)):
        written = []
        for number, drawn in enumerate(originals):
            frames = draw(drawn)
            written.append(folder / f"{name}{number:03}.mp4")
            write(frames, written[-1], "libx264", 96, {"crf": "16"})
            for kind, (container, codec, side, options, kept) in copies.items():
                copy = folder / f"{name}{number:03}_{len(kind)}_{codec}.{container}"
                write(frames[kept], copy, codec, side, options, FPS // (kept.step or 1))
                yield kind, True, written[-1], copy
            redrawn = [redraw_scene(scene, number) for scene in drawn]
            others = {"same shapes elsewhere, other ground": redrawn}
            if name:
                half = SCENES_PER_FILM // 2
                next_film = originals[(number + 1) % len(originals)]
                others = {
                    "film: same shapes elsewhere, other grounds": redrawn,
                    "film: the other half differs": drawn[:half] + next_film[half:],
                    "film: the same scenes in reverse order": drawn[::-1],
                }
                others = {k: v for k, v in others.items() if len(originals) > 1 or "half" not in k}
            else:
                ground = GROUNDS[(GROUNDS.index(drawn[0].ground) + 1) % len(GROUNDS)]
                others["same but for the ground"] = [replace(drawn[0], ground=ground)]
            for kind, other in others.items():
                path = folder / f"{name}{number:03}_{kind.replace(' ', '_').replace(':', '')}.mp4"
                write(draw(other), path, "libx264", 96, {"crf": "16"})
                yield kind, False, written[-1], path
        for first, second in combinations(range(len(written)), 2):
            is_twin = not name and twin_of("test", first) == second
            kind = "same but for one attribute" if is_twin else f"{name.replace('_', ': ')}other shapes"
            yield kind, False, written[first], written[second]


def measure(model: str, num_videos: int, seed: int) -> dict[str, tuple[bool, np.ndarray]]:
    """Return, per kind of pair, whether it is of copies, and the similarities of its pairs."""
    encoder, found = load_encoder(model), {}
    with tempfile.TemporaryDirectory() as folder:
        info = IndexInfo(model, encoder.fingerprint, encoder.embedding_dim, kind=encoder.kind)
        index = VideoIndex(Path(folder, "v.lance"), info)
        pairs = list(write_pairs(Path(folder), num_videos, seed))
        index_videos(encoder, index, folder, segmentation=Segmentation(SCENE_SECONDS))
        files = read_files(index, list(index.files()))
    for kind, is_copy, first, second in pairs:
        value = similarity(files[str(first.resolve())], files[str(second.resolve())])
        found.setdefault(kind, (is_copy, []))[1].append(value)
    return {kind: (is_copy, np.array(values)) for kind, (is_copy, values) in found.items()}


def choose_limit(found: dict[str, tuple[bool, np.ndarray]]) -> float:
    """Return the limit with the fewest errors: the mean, over the kinds of pairs, of the share of wrong pairs."""
    limits = np.arange(0.8, 1, 0.0025)

    def errors(limit: float, of_copies: bool) -> float:
        return float(
            np.mean([((v >= limit) != is_copy).mean() for is_copy, v in found.values() if is_copy == of_copies])
        )

    return float(min(limits, key=lambda limit: errors(limit, True) + errors(limit, False)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure on drawn videos how copies of a video are recognised.")
    parser.add_argument("--model", required=True, help="model trained on moving_shapes")
    parser.add_argument("--videos", type=int, default=100, help="videos per seed, at least 10")
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args()
    if args.videos < SCENES_PER_FILM:
        parser.error(f"--videos is {args.videos}: give {SCENES_PER_FILM} or more, for a film")
    try:
        chosen = choose_limit(measure(args.model, args.videos, VALIDATION_SEED))
        found = measure(args.model, args.videos, TEST_SEED)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    rows = [
        {
            "pairs": kind,
            "number": len(values),
            "similarity, 5 %": round(float(np.quantile(values, 0.05)), 3),
            "median": round(float(np.median(values)), 3),
            "95 %": round(float(np.quantile(values, 0.95)), 3),
            "error": "missed" if is_copy else "grouped",
            **{
                f"% at {limit:.4g}": 100 * float(((values >= limit) != is_copy).mean())
                for limit in (MIN_COSINE, chosen)
            },
        }
        for kind, (is_copy, values) in found.items()
    ]
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{v:.1f}" if name.startswith("% at") else str(v) for name, v in row.items()))
    print(f"{args.videos} videos, model {args.model}; the default limit is {MIN_COSINE}, {chosen:.4g} on validation")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if args.json:
        write_text(args.json, json.dumps({"default": MIN_COSINE, "chosen": chosen, "pairs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
