"""Measure on drawn videos how often "probably nothing here fits" is right.

    python examples/measure_judgements.py --model runs/demo/model --json judgements.json

Indexes of several sizes are drawn from the videos of a seed. A video fits sentences about a scene of the index, about
one of its shapes, and of two words. Nothing fits if all videos that a sentence fits are left out, if no video shows
the colour of a sentence, and if a sentence is about everyday things. Shares in per cent: of the sentences that a video
fits, those of which it is said that nothing fits (false alarms), and of the others, those of which it is not (missed).

Beside it stand two simpler rules: the score of the best video, and the standardised score, its distance from the mean
score in standard deviations. Their limits are chosen on the videos of another seed, for as many false alarms.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict

import numpy as np
from rich.console import Console
from rich.table import Table

from modeling_pig import VideoIndex, VideoSearcher
from modeling_pig.benchmarks.moving_shapes import Regime, describe, fits, make_captions, make_scene, plan_captions
from modeling_pig.benchmarks.shapes_drawing import COLOURS, FORMS, MOTIONS, Scene, write_video
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.encoding.videos import encode_videos
from modeling_pig.files import write_text
from modeling_pig.retrieval.judging import THRESHOLD
from modeling_pig.stores.index import IndexInfo, VideoEntry


VALIDATION_SEED, TEST_SEEDS = 101, (202, 303)
REGIMES = {"caption of all shapes": Regime(), "caption of one shape": Regime(named=1)}
FITTING = (*REGIMES, "colour and form")
# The limits are chosen on the first of two disjoint lists.
EVERYDAY = {
    VALIDATION_SEED: (
        *("a man is cooking pasta in a kitchen", "two dogs run along a beach at sunset", "a woman plays the violin"),
        *("people dance at a wedding party", "a car drives through a snowy forest", "a child opens a present"),
        *("someone repairs a bicycle in a garage", "a football player scores a goal", "a cat sleeps on a sofa"),
        *("a chef slices onions and tomatoes", "waves break on the rocks", "a teacher writes on a blackboard"),
        *("a dog", "a car", "two cats", "a wedding", "the beach", "snow", "a football match", "a birthday cake"),
    ),
    TEST_SEEDS[0]: (
        *("a surfer rides a wave", "an old man feeds pigeons in the park", "a girl brushes her long hair"),
        *("the mechanic changes a tyre", "children build a castle out of sand", "a band performs in front of a crowd"),
        *("a helicopter lands on a roof", "a farmer drives a tractor over the field", "a bird builds its nest"),
        *("someone pours milk into a bowl", "two men play chess", "a bear catches a salmon in the river"),
        *("a horse", "a lake", "three children", "a concert", "rain", "a kitchen", "a tennis game", "an old church"),
    ),
}
EVERYDAY[TEST_SEEDS[1]] = EVERYDAY[TEST_SEEDS[0]]
RULES = {"excess": "judgement", "score": "best score", "standardised": "standardised score"}
Found = dict[tuple[int, str], list[dict[str, float]]]  # index size, kind of sentence -> values of the rules


def measure(model: str, num_videos: int, sizes: list[int], repeats: int, num_queries: int, seed: int) -> Found:
    """Return the values of each rule for the sentences of each kind, by index size."""
    encoder, rng, found = load_encoder(model), np.random.default_rng(seed), defaultdict(list)
    scenes = [make_scene("test", number, seed) for number in range(num_videos)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number:04}.mp4" for number in range(num_videos)]
        for scene, path in zip(scenes, paths, strict=True):
            write_video(scene, path)
        embeddings = np.concatenate([batch.embeddings.numpy() for batch in encode_videos(encoder, paths, [])])
        info = IndexInfo(model, encoder.fingerprint, encoder.embedding_dim, encoder.num_frames, kind=encoder.kind)
        for size in sizes:
            for repeat in range(repeats):
                chosen = rng.permutation(num_videos)[:size]
                index = VideoIndex(f"{folder}/{size}_{repeat}.lance", info)
                entries = [VideoEntry(paths[number]) for number in chosen]
                colours = [{"colours": sorted({shape.colour for shape in scenes[n].shapes})} for n in chosen]
                index.upsert(entries, embeddings[chosen], metadata=colours)
                searcher = VideoSearcher.from_pretrained(None, index.uri)
                for kind, query, where in draw_queries(rng, scenes, paths, chosen, num_queries, seed):
                    excess = searcher.judge(query, where).excess
                    scores = [result.score for result in searcher.search(query, k=size, where=where)]
                    standardised = (scores[0] - np.mean(scores)) / np.std(scores)
                    values = {"excess": excess, "score": scores[0], "standardised": float(standardised)}
                    found[size, kind].append(values)
    return found


def draw_queries(
    rng: np.random.Generator, scenes: list[Scene], paths: list[str], chosen: np.ndarray, count: int, seed: int
) -> list[tuple[str, str, str | None]]:
    """Return queries with their kinds, and the condition that leaves out the videos that they fit."""
    queries = [("everyday", query, None) for query in EVERYDAY[seed]]
    for number in rng.choice(chosen, min(count, len(chosen)), replace=False).tolist():
        for kind, regime in REGIMES.items():
            caption = int(rng.integers(4))
            query = make_captions("test", number, seed, regime)[caption]
            content = describe(scenes[number], plan_captions("test", number, seed, regime))[caption]
            others = [f"path != '{paths[n]}'" for n in chosen if fits(content, scenes[n])]
            queries += [(kind, query, None), (f"{kind}, videos left out", query, " and ".join(others))]
        shape = scenes[number].shapes[0]
        queries.append(("colour and form", f"a {shape.colour} {shape.form}", None))
    for colour in COLOURS:
        query = f"a {colour} {FORMS[rng.integers(len(FORMS))]} {MOTIONS[rng.integers(len(MOTIONS))]}"
        queries.append(("colour of no video", query, f"not colours has '{colour}'"))
    return queries


def choose_limits(found: Found, threshold: float) -> dict[str, float]:
    """Return the limit of each rule: the threshold of the excess, and limits with as many false alarms."""

    def values(rule: str) -> np.ndarray:
        return np.array([row[rule] for (_, kind), rows in found.items() if kind in FITTING for row in rows])

    share = float((values("excess") < threshold).mean())
    return {rule: threshold if rule == "excess" else float(np.quantile(values(rule), share)) for rule in RULES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how often 'probably nothing here fits' is right.")
    parser.add_argument("--model", required=True, help="model trained on moving_shapes")
    parser.add_argument("--videos", type=int, default=400, help="videos per seed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 400], help="entries per index, at least 20")
    parser.add_argument("--repeats", type=int, default=4, help="indexes of each size and seed")
    parser.add_argument("--queries", type=int, default=20, help="scenes per index that sentences are about")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="smallest excess that fits")
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args()
    if not 20 <= min(args.sizes) <= max(args.sizes) <= args.videos:
        parser.error(f"--sizes is {args.sizes}: give sizes from 20 to --videos, {args.videos}")
    options = (args.videos, args.sizes, args.repeats, args.queries)
    try:
        limits = choose_limits(measure(args.model, *options, VALIDATION_SEED), args.threshold)
        test = [measure(args.model, *options, seed) for seed in TEST_SEEDS]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    rows = []
    for kind in dict.fromkeys(kind for found in test for _, kind in found):
        is_fitting = kind in FITTING
        row = {"sentence": kind, "error": "false alarms" if is_fitting else "missed"}
        for rule, name in RULES.items():
            for size in args.sizes:
                by_seed = [
                    100 * np.mean([(values[rule] < limits[rule]) == is_fitting for values in found[size, kind]])
                    for found in test
                ]
                row[f"{name}, {size}"] = round(float(np.mean(by_seed)), 1)
        rows.append(row)
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    print(f"model {args.model}; limits: {', '.join(f'{RULES[rule]} {limit:.3f}' for rule, limit in limits.items())}")
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    if args.json:
        record = {"model": args.model, "limits": limits, "shares": rows}
        write_text(args.json, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
