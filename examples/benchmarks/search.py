"""`search`: an index on disk, filled, opened anew and asked, beside torch's product with topk and FAISS in memory.

The embeddings cluster, as those of videos do: 100 a cluster on average, sizes by Zipf's law (exponent 0.8), the
variance of the dimensions falling as 1 / j, and all in one cone (two of them have a cosine of 0.5). A sentence is the
content of a video with noise of length 1, in a cone of its own (a modality gap): among 100,000 videos half of the
sentences find theirs under the first ten.

Queries of all ways are interleaved, in one process; opening and memory are those of a process of its own.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_pig.stores.index import IndexInfo, VideoEntry, VideoIndex

from .measure import in_own_process, interleave, judge, peak_memory, print_table


ROWS_A_WRITE = 20_000
BATCH = 100


def make_embeddings(count: int, queries: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Videos (count, width) float16 and sentences (queries, width) float32, normalised; see the top of this file."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    spread = torch.arange(1, width + 1) ** -0.5
    spread /= spread.norm()
    clusters = max(count // 100, 10)
    centres = 0.8 * noise(clusters, width) * spread
    weights = torch.arange(1, clusters + 1) ** -0.8
    cone, gap = torch.nn.functional.normalize(noise(2, width))
    videos = torch.empty(count, width, dtype=torch.float16)
    for rows in videos.split(ROWS_A_WRITE):
        chosen = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
        rows[:] = torch.nn.functional.normalize(cone + centres[chosen] + 0.5 * noise(len(rows), width) * spread)
    content = videos[torch.randint(count, (queries,), generator=generator)].float() - videos[
        :ROWS_A_WRITE
    ].float().mean(0)
    sentences = 1.2 * gap + 0.5 * cone + content + noise(queries, width) * spread
    return videos, torch.nn.functional.normalize(sentences)


def _path(row: int) -> str:
    return f"/videos/{row // 1000}/{row}.mp4"


def fill(folder: str, videos: torch.Tensor) -> dict[str, Any]:
    """Writes all videos into a new index: rows a second of the writes, seconds of `optimize`, MB on disk."""
    index = VideoIndex(folder, IndexInfo("benchmark", "0", videos.shape[1]))
    seconds, rng = 0.0, np.random.default_rng(0)
    for first in range(0, len(videos), ROWS_A_WRITE):
        rows = videos[first : first + ROWS_A_WRITE].float()
        facts = zip(range(first, first + len(rows)), rng.exponential(30, len(rows)), strict=True)
        entries = [VideoEntry(_path(row), None, None, d, int(2e5 * d), 10**18 + 10**9 * row) for row, d in facts]
        start = time.perf_counter()
        index.upsert(entries, rows)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    index.optimize()
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {
        "rows/s": len(videos) / seconds,
        "optimize s": time.perf_counter() - start,
        "disk MB": size / 1e6,
        "method": index.search_method,
    }


def _reopen(folder: str, sentences: np.ndarray, threads: int) -> dict[str, Any]:
    """In a process of its own: seconds to the first answer, and the MB that this and all other sentences add."""
    torch.set_num_threads(threads)

    def ask() -> float:
        start = time.perf_counter()
        index = VideoIndex(folder)
        index.search(sentences[:1])
        seconds = time.perf_counter() - start
        index.search(sentences)
        return seconds

    seconds, added = peak_memory(ask)
    return {"reopen s": seconds, "memory MB": added}


def make_ways(
    folder: str, videos: torch.Tensor, leave_out: list[str]
) -> tuple[dict[str, Callable[[torch.Tensor], Any]], dict[str, float]]:
    """Functions from sentences (Q, D) to rows (Q, 10), by name, and the seconds that FAISS took to build."""
    rows = {_path(row): row for row in range(len(videos))}
    index, full = VideoIndex(folder), videos.float()
    ways: dict[str, Callable[[torch.Tensor], Any]] = {
        "ours": lambda q: [[rows[found.path] for found in answers] for answers in index.search(q, 10)],
        "torch": lambda q: (q @ full.t()).topk(10).indices,
    }
    seconds = {}
    for name, description in (("FAISS flat", "Flat"), ("FAISS HNSW", "HNSW32,Flat")):
        if name in leave_out:
            continue
        import faiss

        start = time.perf_counter()
        peer: Any = faiss.index_factory(videos.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in name:
            peer.hnsw.efConstruction, peer.hnsw.efSearch = 100, 256
        peer.add(full.numpy())
        seconds[name] = time.perf_counter() - start
        ways[name] = _ask_faiss(peer)
    return ways, seconds


def _ask_faiss(index: Any) -> Callable[[torch.Tensor], np.ndarray]:
    return lambda sentences: index.search(sentences.numpy(), 10)[1]


def _ask(folder: str, shape: tuple[int, int, int], leave_out: list[str], threads: int) -> list[dict]:
    """In a process of its own: a row a way."""
    torch.set_num_threads(threads)
    if "FAISS flat" not in leave_out:
        import faiss

        faiss.omp_set_num_threads(threads)
    videos, sentences = make_embeddings(*shape)
    ways, build = make_ways(folder, videos, leave_out)
    one: dict[str, list[float]] = {name: [] for name in ways}
    hits = dict.fromkeys(ways, 0)
    for number in range(-1, len(sentences)):  # one for warm-up
        question = sentences[max(number, 0)][None]
        answers = {}
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = set(np.asarray(way(question))[0].tolist())
            if number >= 0:
                one[name].append(1000 * (time.perf_counter() - start))
        if number >= 0:
            for name in ways:
                hits[name] += len(answers[name] & answers["torch"])
    batch, _ = interleave({name: lambda way=way: way(sentences[:BATCH]) for name, way in ways.items()}, 3)
    return [
        {
            "videos": shape[0],
            "search": name,
            "one query p50 ms": statistics.median(one[name]),
            "p99 ms": float(np.quantile(one[name], 0.99)),
            # Rounds are compared: a median of ratios is not moved by what else the machine does.
            "of torch's time": statistics.median(a / b for a, b in zip(one[name], one["torch"], strict=True)),
            f"{BATCH} queries ms": 1000 * statistics.median(batch[name]),
            "recall@10": hits[name] / len(sentences) / min(10, shape[0]),
            "build s": build.get(name),
        }
        for name in ways
    ]


def hold_to_bars(count: int, ours: dict[str, Any], stored: dict[str, Any], width: int) -> Iterator[dict[str, Any]]:
    """A row for each figure that is held to something at this size."""

    def row(figure: str, value: float | None, **bar: float) -> dict[str, Any]:
        return {"videos": count, "figure": figure, "value": value, **judge(value, **bar)}

    large = count >= 1_000_000
    yield row("videos written a second", stored["rows/s"], at_least=20_000)
    yield row("seconds to merge and to make the ANN index", stored["optimize s"])
    yield row("MB on disk", stored["disk MB"])
    yield row("seconds from opening to the first answer", stored["reopen s"], **({"at_most": 2.0} if large else {}))
    memory = stored["memory MB"] and stored["memory MB"] / (2e-6 * count * width)
    yield row("memory, of that of the vectors as stored", memory, **({"at_most": 1.5} if large else {}))
    if large:
        yield row("one query p50 ms", ours["one query p50 ms"], at_most=20.0)
    else:
        yield row(
            "one query, of torch's time", ours["of torch's time"], **({"at_most": 1.5} if count >= 100_000 else {})
        )
    yield row("recall@10 against exact", ours["recall@10"], at_least=0.98)


def benchmark_size(
    count: int, width: int, queries: int, leave_out: list[str], threads: int, folder: str
) -> tuple[list[dict], list[dict]]:
    """The rows of all ways, and those of the bars, for an index of so many videos, made in a folder and removed."""
    index = os.path.join(folder, "videos.lance")
    videos, sentences = make_embeddings(count, queries, width)
    stored = fill(index, videos)
    print(f"{count:,} videos are searched by {stored['method']}")
    del videos
    stored |= in_own_process(_reopen, index, sentences.numpy(), threads)
    ways = in_own_process(_ask, index, (count, queries, width), leave_out, threads)
    shutil.rmtree(index)
    return ways, list(hold_to_bars(count, ways[0], stored, width))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--hnsw-up-to", type=int, default=100_000, help="FAISS takes minutes to build it for more")
    parser.add_argument("--quick", action="store_true", help="1,000 videos of width 32: does it run?")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """The tables, printed: all ways at all sizes, and what ours is held to."""
    sizes, width, queries = ([1_000], 32, BATCH) if args.quick else (args.sizes, args.width, args.queries)
    has_faiss = importlib.util.find_spec("faiss") is not None
    if not has_faiss:
        print("FAISS is left out: pip install faiss-cpu")
    ways, bars = [], []
    for count in sizes:
        leave_out = [] if count <= args.hnsw_up_to else ["FAISS HNSW"]
        if not has_faiss:
            leave_out = ["FAISS flat", "FAISS HNSW"]
        with tempfile.TemporaryDirectory() as folder:
            rows, held = benchmark_size(count, width, queries, leave_out, args.threads, folder)
        print_table(f"{count:,} videos, width {width}, {args.threads} threads", rows)
        print_table("what ours is held to", held)
        ways += rows
        bars += held
    return {"search": ways, "bars": bars}
