"""`search`: an index on disk, filled, reopened and searched, compared with torch (product, topk) and FAISS in memory.

The embeddings are clustered like those of videos: 100 per cluster on average, sizes by Zipf's law (exponent 0.8), the
variance of the dimensions decreasing as 1 / j, and all in one cone (two embeddings have a cosine of 0.5). A query
embedding is the content of a video with noise of length 1, in a separate cone (a modality gap): among 100,000 videos
half of the queries find their video among the first ten.

Queries of all methods are interleaved in one process, those of ours are then repeated alone; reopening and memory are
measured in a separate process. Idle threads of OpenMP sleep (`OMP_WAIT_POLICY=PASSIVE`): those of one method would
otherwise keep a core busy when the next one starts.
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

from .measure import in_separate_process, interleave, judge, median_ratio, peak_memory, print_table


ENTRIES_PER_WRITE = 20_000
BATCH = 100


def make_embeddings(count: int, num_queries: int, embedding_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised embeddings: videos, (count, embedding_dim) float16, and queries, (num_queries, embedding_dim)
    float32."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    spread = torch.arange(1, embedding_dim + 1) ** -0.5
    spread /= spread.norm()
    clusters = max(count // 100, 10)
    centres = 0.8 * noise(clusters, embedding_dim) * spread
    weights = torch.arange(1, clusters + 1) ** -0.8
    cone, gap = torch.nn.functional.normalize(noise(2, embedding_dim))
    videos = torch.empty(count, embedding_dim, dtype=torch.float16)
    for rows in videos.split(ENTRIES_PER_WRITE):
        chosen = torch.multinomial(weights, len(rows), replacement=True, generator=generator)
        rows[:] = torch.nn.functional.normalize(
            cone + centres[chosen] + 0.5 * noise(len(rows), embedding_dim) * spread
        )
    content = videos[torch.randint(count, (num_queries,), generator=generator)].float() - videos[
        :ENTRIES_PER_WRITE
    ].float().mean(0)
    query_embeddings = 1.2 * gap + 0.5 * cone + content + noise(num_queries, embedding_dim) * spread
    return videos, torch.nn.functional.normalize(query_embeddings)


def _path(row: int) -> str:
    return f"/videos/{row // 1000}/{row}.mp4"


def fill(folder: str, videos: torch.Tensor) -> dict[str, Any]:
    """Write all videos into a new index; return entries per second, seconds of `optimize`, and MB on disk."""
    index = VideoIndex(folder, IndexInfo("benchmark", "0", videos.shape[1]))
    seconds, rng = 0.0, np.random.default_rng(0)
    for first in range(0, len(videos), ENTRIES_PER_WRITE):
        rows = videos[first : first + ENTRIES_PER_WRITE].float()
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


def _reopen(folder: str, query_embeddings: np.ndarray, threads: int) -> dict[str, Any]:
    """Return seconds to the first results, and the MB that all queries add; called in a separate process."""
    torch.set_num_threads(threads)

    def search() -> float:
        start = time.perf_counter()
        index = VideoIndex(folder)
        index.search(query_embeddings[:1])
        seconds = time.perf_counter() - start
        index.search(query_embeddings)
        return seconds

    seconds, added = peak_memory(search)
    return {"reopen s": seconds, "memory MB": added}


def make_methods(
    folder: str, videos: torch.Tensor, leave_out: list[str]
) -> tuple[dict[str, Callable[[torch.Tensor], Any]], dict[str, float]]:
    """Return functions from query embeddings, (Q, D), to rows, (Q, 10), by name, and the seconds to build FAISS."""
    rows = {_path(row): row for row in range(len(videos))}
    index, full = VideoIndex(folder), videos.float()
    index.warm()  # as `pig app` does
    methods: dict[str, Callable[[torch.Tensor], Any]] = {
        "ours": lambda q: [[rows[found.path] for found in results] for results in index.search(q, 10)],
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
        methods[name] = _search_faiss(peer)
    return methods, seconds


def _search_faiss(index: Any) -> Callable[[torch.Tensor], np.ndarray]:
    return lambda query_embeddings: index.search(query_embeddings.numpy(), 10)[1]


def _compare(folder: str, shape: tuple[int, int, int], leave_out: list[str], threads: int) -> list[dict]:
    """Return one row per method; called in a separate process."""
    torch.set_num_threads(threads)
    if "FAISS flat" not in leave_out:
        import faiss

        faiss.omp_set_num_threads(threads)
    videos, query_embeddings = make_embeddings(*shape)
    methods, build = make_methods(folder, videos, leave_out)
    single: dict[str, list[float]] = {name: [] for name in methods}  # ms per query
    hits = dict.fromkeys(methods, 0)
    for number in range(-1, len(query_embeddings)):  # -1: warm-up
        query_embedding = query_embeddings[max(number, 0)][None]
        results = {}
        for name, method in methods.items():
            start = time.perf_counter()
            results[name] = set(np.asarray(method(query_embedding))[0].tolist())
            if number >= 0:
                single[name].append(1000 * (time.perf_counter() - start))
        if number >= 0:
            for name in methods:
                hits[name] += len(results[name] & results["torch"])
    batch, _ = interleave(
        {name: lambda method=method: method(query_embeddings[:BATCH]) for name, method in methods.items()}, 5
    )
    alone = []  # ms per query of ours: the peers' passes over all rows empty the processor's caches
    for query_embedding in query_embeddings:
        start = time.perf_counter()
        methods["ours"](query_embedding[None])
        alone.append(1000 * (time.perf_counter() - start))
    peers = [single[name] for name in ("torch", "FAISS flat") if name in single]
    faster = [min(times) for times in zip(*peers, strict=True)]
    return [
        {
            "videos": shape[0],
            "search": name,
            "one query p50 ms": statistics.median(single[name]),
            "p99 ms": float(np.quantile(single[name], 0.99)),
            "alone p50 ms": statistics.median(alone) if name == "ours" else None,
            "alone p99 ms": float(np.quantile(alone, 0.99)) if name == "ours" else None,
            # A median of ratios within a round is robust against the load of the machine.
            "of torch's time": median_ratio(single[name], single["torch"]),
            "of the faster peer's": median_ratio(single[name], faster),
            f"{BATCH} queries ms": 1000 * statistics.median(batch[name]),
            "of torch's": median_ratio(batch[name], batch["torch"]),
            "recall@10": hits[name] / len(query_embeddings) / min(10, shape[0]),
            "build s": build.get(name),
        }
        for name in methods
    ]


def hold_to_bars(
    count: int, ours: dict[str, Any], stored: dict[str, Any], embedding_dim: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per figure that has a required value at this size."""

    def row(figure: str, value: float | None, **bar: float) -> dict[str, Any]:
        return {"videos": count, "figure": figure, "value": value, **judge(value, **bar)}

    large = count >= 1_000_000
    yield row("videos written per second", stored["rows/s"], at_least=20_000)
    yield row("seconds to merge and to build the ANN index", stored["optimize s"])
    yield row("MB on disk", stored["disk MB"])
    yield row("seconds from opening to the first results", stored["reopen s"], **({"at_most": 2.0} if large else {}))
    memory = stored["memory MB"] and stored["memory MB"] / (2e-6 * count * embedding_dim)
    yield row("memory, relative to the stored vectors", memory, **({"at_most": 1.5} if large else {}))
    if large:
        yield row("one query alone p50 ms", ours["alone p50 ms"], at_most=10.0)
        yield row("one query alone p99 ms", ours["alone p99 ms"], at_most=30.0)
    else:
        yield row(
            "one query, relative to the faster of torch and FAISS flat", ours["of the faster peer's"], at_most=1.0
        )
        yield row(f"{BATCH} queries, relative to torch", ours["of torch's"], at_most=1.1)
    yield row("recall@10 against exact search", ours["recall@10"], at_least=0.98)


def benchmark_size(
    count: int, embedding_dim: int, num_queries: int, leave_out: list[str], threads: int, folder: str
) -> tuple[list[dict], list[dict]]:
    """Return the rows of all methods, and of the required values, for an index of `count` videos in `folder`."""
    index = os.path.join(folder, "videos.lance")
    videos, query_embeddings = make_embeddings(count, num_queries, embedding_dim)
    stored = fill(index, videos)
    print(f"{count:,} videos are searched by {stored['method']}")
    del videos
    stored |= in_separate_process(_reopen, index, query_embeddings.numpy(), threads)
    rows = in_separate_process(_compare, index, (count, num_queries, embedding_dim), leave_out, threads)
    shutil.rmtree(index)
    return rows, list(hold_to_bars(count, rows[0], stored, embedding_dim))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--embedding-dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--hnsw-up-to", type=int, default=100_000, help="largest size for FAISS HNSW, which takes minutes to build"
    )
    parser.add_argument("--quick", action="store_true", help="1,000 videos of 32 dimensions, to see that it runs")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print all methods at all sizes, and the required values of ours."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for the processes that measure: torch and FAISS read it once
    sizes, embedding_dim, num_queries = args.sizes, args.embedding_dim, args.queries
    if args.quick:
        sizes, embedding_dim, num_queries = [1_000], 32, BATCH
    has_faiss = importlib.util.find_spec("faiss") is not None
    if not has_faiss:
        print("FAISS is left out: pip install faiss-cpu")
    figures: dict[str, list[dict]] = {"search": [], "bars": []}
    for count in sizes:
        leave_out = [] if count <= args.hnsw_up_to else ["FAISS HNSW"]
        if not has_faiss:
            leave_out = ["FAISS flat", "FAISS HNSW"]
        with tempfile.TemporaryDirectory() as folder:
            rows, held = benchmark_size(count, embedding_dim, num_queries, leave_out, args.threads, folder)
        print_table(f"{count:,} videos, {embedding_dim} dimensions, {args.threads} threads", rows)
        print_table("required values of ours", held)
        figures["search"] += rows
        figures["bars"] += held
    return figures
