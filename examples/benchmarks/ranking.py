"""`ranking`: scores and ranks in both directions from embeddings, in blocks as in `evaluate`, and by sorting the whole
matrix.

Time and peak memory, beyond the embeddings, are those of one run in a separate process. Both methods must give equal
ranks: the embeddings are integers divided by a power of two, so that their dot products are exact in any order of
summation.
"""

import argparse
import time

import numpy as np
import torch

from modeling_pig.evaluation.metrics import ranks_in_both_directions

from .measure import fork_after_imports, in_separate_process, peak_memory, print_table


def make_embeddings(num_texts: int, num_videos: int, embedding_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts, (num_texts, embedding_dim), and videos, (num_videos, embedding_dim), in float32.

    The texts of a video are consecutive. About a quarter of the texts rank their video first, and some scores are
    equal.
    """
    generator = torch.Generator().manual_seed(0)
    videos = (4 * torch.randn(num_videos, embedding_dim, generator=generator)).round()
    texts = 32 * torch.randn(num_texts, embedding_dim, generator=generator)
    texts += videos.repeat_interleave(num_texts // num_videos, dim=0)
    return (
        texts.round() / 2**7,
        videos / 2**7,
    )  # with 512 dimensions the score is 0.5 for the true video, 0 +- 0.2 for others


def rank_in_blocks(texts: torch.Tensor, videos: torch.Tensor, dual_softmax: bool) -> dict[str, np.ndarray]:
    """Rank as `evaluate` does."""
    owners = torch.arange(len(texts)) // (len(texts) // len(videos))
    return ranks_in_both_directions(
        lambda rows: texts[rows] @ videos.t(), owners, len(videos), dual_softmax=dual_softmax
    )


def rank_by_sorting(texts: torch.Tensor, videos: torch.Tensor, dual_softmax: bool) -> dict[str, np.ndarray]:
    """Rank by sorting the whole matrix; a target's rank is the mean rank of all equal scores."""

    def ranks(scores: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        target_scores = scores.gather(1, targets[:, None])
        ascending = scores.sort(dim=1).values
        last = scores.shape[1] - torch.searchsorted(ascending, target_scores)
        first = scores.shape[1] - torch.searchsorted(ascending, target_scores, right=True) + 1
        return ((first + last) / 2).flatten().double().numpy()

    def best(scores: torch.Tensor) -> torch.Tensor:  # (videos, owners of texts)
        return scores.view(len(videos), -1, len(videos)).amax(1).t().contiguous()

    scores = texts @ videos.t()
    targets = torch.arange(len(videos))
    owners = targets.repeat_interleave(len(texts) // len(videos))
    found = {"text_to_video": ranks(scores, owners), "video_to_text": ranks(best(scores), targets)}
    if dual_softmax:
        scores = scores.double()
        for direction, queries, right in (("text_to_video", 0, owners), ("video_to_text", 1, targets)):
            weighted = (100 * scores).softmax(queries).mul_(scores)
            found[f"{direction}_dual_softmax"] = ranks(best(weighted) if queries else weighted, right)
    return found


RANKING = {"in blocks": rank_in_blocks, "sorting": rank_by_sorting}


def _measure_ranking(
    way: str, shape: tuple[int, int, int], dual_softmax: bool, threads: int
) -> tuple[float, float, float | None, dict[str, np.ndarray]]:
    """Return seconds, CPU seconds of all threads, MB at the peak, and ranks; called in a separate process."""
    torch.set_num_threads(threads)
    RANKING[way](*make_embeddings(8, 4, shape[2]), dual_softmax)  # warm-up
    embeddings = make_embeddings(*shape)
    start, start_cpu = time.perf_counter(), time.process_time()
    ranks, added = peak_memory(lambda: RANKING[way](*embeddings, dual_softmax))
    return time.perf_counter() - start, time.process_time() - start_cpu, added, ranks


def benchmark_ranking(shape: tuple[int, int, int], threads: int) -> list[dict]:
    """Measure both methods, without and with dual softmax."""
    fork_after_imports()
    rows = []
    for dual_softmax in (False, True):
        measured = {
            way: in_separate_process(_measure_ranking, way, shape, dual_softmax, threads, start_method="forkserver")
            for way in RANKING
        }
        floor_seconds, _, floor_added, floor_ranks = measured["sorting"]
        for way, (seconds, cpu_seconds, added, ranks) in measured.items():
            rows.append(
                {
                    "ranks": way,
                    "dual softmax": "yes" if dual_softmax else "no",
                    "seconds": seconds,
                    "CPU seconds": cpu_seconds,  # more reliable if other programs share the machine
                    "ratio": seconds / floor_seconds,
                    "added MB": added,
                    "memory ratio": added / floor_added if added and floor_added else None,
                    "ranks that differ": sum(int((ranks[name] != floor_ranks[name]).sum()) for name in floor_ranks),
                    "of": sum(map(len, floor_ranks.values())),
                    "R@1": 100 * float((ranks["text_to_video"] == 1).mean()),
                }
            )
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        nargs=3,
        type=int,
        default=[59_800, 2_990, 512],
        metavar=("TEXTS", "VIDEOS", "DIMENSIONS"),
        help="sizes; the number of texts is a multiple of that of videos",
    )


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print both methods."""
    texts, videos, dimensions = args.shape
    rows = benchmark_ranking((texts, videos, dimensions), args.threads)
    print_table(f"{texts:,} texts x {videos:,} videos, {dimensions} dimensions, both directions", rows)
    return {"ranking": rows}
