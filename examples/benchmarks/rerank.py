"""`rerank`: searches that rank their best results again, compared with the same interaction in torch.

The index holds random embeddings with 16 context tokens each, those of a model of 12 frames. A search includes reading
the tokens from disk, but not the text tower. The peer is `PigForRetrieval.similarity` on tokens that are in memory:
the scores of the same number of videos, without finding or reading them. Bytes are those on disk after writing and
merging, which for ten minutes hold each video twice.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor, VideoIndex, VideoSearcher
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.retrieval.search_options import SearchOptions
from modeling_pig.stores.index import IndexInfo, VideoEntry
from modeling_pig.training.tokenizer import train_tokenizer

from .measure import interleave, median_ratio, print_table


NUM_TOKENS, EMBEDDING_DIM = 16, 512
ENTRIES_PER_WRITE = 1000
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}


def make_searcher(folder: Path, count: int, with_tokens: bool) -> VideoSearcher:
    """Write a model with small towers and an interaction of full size, and an index of `count` random entries."""
    model, index = folder / "model", folder / f"{'tokens' if with_tokens else 'plain'}.lance"
    if not model.exists():
        torch.manual_seed(0)
        tokenizer = train_tokenizer([["a red circle moves left"]], 520, 77)
        config = PigConfig(
            text_config={**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
            vision_config={**SMALL, "image_size": 32, "patch_size": 16},
            projection_dim=EMBEDDING_DIM,
        )
        PigForRetrieval(config).save_pretrained(model)
        PigProcessor(PigVideoProcessor.from_config(config.vision_config), tokenizer).save_pretrained(model)
    info = IndexInfo(
        str(model),
        model_fingerprint(str(model)),
        EMBEDDING_DIM,
        num_frames=12,
        num_context_tokens=NUM_TOKENS if with_tokens else None,
    )
    store, rng = VideoIndex(index, info), np.random.default_rng(0)
    for first in range(0, count, ENTRIES_PER_WRITE):
        size = min(ENTRIES_PER_WRITE, count - first)
        embeddings = rng.standard_normal((size, EMBEDDING_DIM), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        tokens = rng.standard_normal((size, NUM_TOKENS, EMBEDDING_DIM), np.float32) if with_tokens else None
        store.upsert([VideoEntry(f"/videos/{first + row}.mp4") for row in range(size)], embeddings, tokens)
    store.optimize()
    return VideoSearcher.from_pretrained(None, index)


def benchmark_rerank(count: int, rerank: list[int], repeats: int) -> list[dict[str, Any]]:
    """Return one row per number of videos that are ranked again; 0 is a plain search."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain, searcher = (make_searcher(Path(folder), count, with_tokens) for with_tokens in (False, True))
        sizes = {
            name: sum(file.stat().st_size for file in Path(folder, f"{name}.lance").rglob("*") if file.is_file())
            for name in ("plain", "tokens")
        }
        model = PigForRetrieval.from_pretrained(searcher.name).eval()
        query = torch.nn.functional.normalize(torch.randn(1, EMBEDDING_DIM), dim=-1)
        for number in [0, *rerank]:
            context = torch.randn(max(number, 1), NUM_TOKENS, EMBEDDING_DIM)
            options = SearchOptions(rerank=number or None)
            with torch.inference_mode():
                seconds, _ = interleave(
                    {
                        "ours": lambda options=options: _search(searcher if options.rerank else plain, query, options),
                        "torch": lambda context=context: model.similarity(query, context),
                    },
                    repeats,
                )
            rows.append(
                {
                    "videos": count,
                    "ranked again": number,
                    "ms per query": 1000 * statistics.median(seconds["ours"]),
                    "interaction in torch, ms": 1000 * statistics.median(seconds["torch"]) if number else None,
                    "of its time": median_ratio(seconds["ours"], seconds["torch"]) if number else None,
                    "bytes per video": sizes["tokens" if number else "plain"] / count,
                }
            )
    return rows


def _search(searcher: VideoSearcher, query: torch.Tensor, options: SearchOptions) -> Any:
    return searcher.search_embeddings(query.numpy(), options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--rerank", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--repeats", type=int, default=50, help="rounds after the warm-up")
    parser.add_argument("--quick", action="store_true", help="few videos, to see that it runs")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print the table."""
    count, rerank, repeats = (200, [20], 2) if args.quick else (args.videos, args.rerank, args.repeats)
    rows = benchmark_rerank(count, rerank, repeats)
    print_table("searches that rank their best results again", rows)
    return {"re-ranking": rows}
