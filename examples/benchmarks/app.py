"""`app`: searches over the HTTP API of `pig app`, and the same searches in-process.

A ViT-B/32 with random weights and 100,000 embeddings are on disk. Each client sends a sentence, waits for the ten
results, and sends the next one, of 2,000 sentences in turn, so that none is still remembered: over HTTP on a
connection that stays open, in-process with `VideoSearcher.search` from a thread. With many clients, nearly all of the
time is spent waiting for a core, so compare rows with the same number of clients. Every response is checked: an error,
or other results than those of the searcher, counts in the column `errors`. Servers, clients and in-process searches
share the cores of the machine.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch

from modeling_pig import VideoSearcher
from modeling_pig.encoding.recent_texts import NUM_REMEMBERED

from .measure import in_separate_process, print_table
from .start import QUERY, make_index


NUM_SENTENCES, NUM_RESULTS = 2 * NUM_REMEMBERED, 10
Measured = tuple[list[float], int]  # seconds of each search, number of errors


def sentences() -> list[str]:
    """Return different sentences."""
    return [f"{QUERY} {number}" for number in range(NUM_SENTENCES)]


def search_in_process(
    folder: str, clients: int, seconds: float, threads: int, expected: dict[str, list[str]]
) -> Measured:
    """Search from `clients` threads; called in a separate process."""
    torch.set_num_threads(threads)
    searcher = VideoSearcher.from_pretrained(None, f"{folder}/videos.lance")
    searcher.search(QUERY)  # warm-up
    taken: list[float] = []
    wrong: list[str] = []

    def search(client: int) -> None:
        for number in range(client, sys.maxsize, clients):
            text = sentences()[number % NUM_SENTENCES]
            start = time.perf_counter()
            if start > end:
                return
            results = searcher.search(text, k=NUM_RESULTS)
            taken.append(time.perf_counter() - start)
            if [result.path for result in results] != expected[text]:
                wrong.append(text)

    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(search, range(clients)))
    return taken, len(wrong)


async def search_over_http(
    port: int, clients: int, seconds: float, expected: dict[str, list[str]], first: int = 0
) -> Measured:
    """Search from `clients` connections, for sentence number `first` and those after it."""
    taken: list[float] = []
    num_errors = 0

    async def search(client: int) -> None:
        nonlocal num_errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(first + client, sys.maxsize, clients):
            text = sentences()[number % NUM_SENTENCES]
            start = time.perf_counter()
            if start > end:
                break
            query = urlencode({"text": text, "k": NUM_RESULTS})
            writer.write(f"GET /api/v1/search?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
                )
                body = json.loads(await reader.readexactly(length))
                taken.append(time.perf_counter() - start)
                if [result["path"] for result in body.get("results", [])] != expected[text]:
                    num_errors += 1
            except (OSError, EOFError, ValueError):
                num_errors += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    end = time.perf_counter() + seconds
    await asyncio.gather(*map(search, range(clients)))
    return taken, num_errors


def describe(name: str, count: int, clients: int, seconds: float, measured: Measured) -> dict:
    """Return a row of the table."""
    taken, num_errors = measured
    return {
        "videos": count,
        "clients": clients,
        "searches run": name,
        "searches": len(taken),
        "per second": len(taken) / seconds,
        "p50 ms": 1000 * float(np.quantile(taken, 0.5)),
        "p99 ms": 1000 * float(np.quantile(taken, 0.99)),
        "errors": num_errors,
    }


def benchmark_app(size: str, count: int, clients: int, seconds: float, threads: int) -> list[dict]:
    """Return one row per way to search and number of clients."""
    rows = []
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder), size, count)
        searcher = VideoSearcher.from_pretrained(None, f"{folder}/videos.lance")
        found = searcher.search(sentences(), k=NUM_RESULTS)
        expected = {text: [r.path for r in results] for text, results in zip(sentences(), found, strict=True)}
        for number in (1, clients):
            measured = in_separate_process(search_in_process, folder, number, seconds, threads, expected)
            rows.append(describe("in-process", count, number, seconds, measured))
            command = [
                sys.executable,
                "-m",
                "modeling_pig.cli",
                "app",
                "--index",
                f"{folder}/videos.lance",
                "--port",
                "0",
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                try:
                    port = int(server.stdout.readline().split()[0].rpartition(":")[2])
                    warm_up = search_over_http(port, number, min(seconds, 1.0), expected, first=NUM_REMEMBERED)
                    asyncio.run(warm_up)
                    measured = asyncio.run(search_over_http(port, number, seconds, expected))
                finally:
                    server.terminate()
            rows.append(describe("over HTTP", count, number, seconds, measured))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="b32", choices=["b32", "b16", "tiny"])
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0, help="per row of the table")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, few videos and seconds, to see that it runs"
    )


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print the table."""
    size, count, clients, seconds = args.size, args.videos, args.clients, args.seconds
    if args.quick:
        size, count, clients, seconds = "tiny", 500, 10, 1.0
    rows = benchmark_app(size, count, clients, seconds, args.threads)
    print_table(f"searches of {clients} clients", rows)
    return {"load": rows}
