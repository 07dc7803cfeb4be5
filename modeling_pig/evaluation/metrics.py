"""Ranks of the right answers, and the metrics of retrieval over them. Scores are taken in blocks of queries."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch


TiePolicy = Literal["expected", "optimistic", "pessimistic"]


def ranks_of_targets(scores: torch.Tensor, targets: torch.Tensor, ties: TiePolicy = "expected") -> np.ndarray:
    """Rank of each query's target among all candidates, from 1; every query counts once.

    Args:
        scores (`torch.Tensor` of shape `(queries, candidates)`): higher is better.
        targets (`torch.Tensor` of shape `(queries,)`): the right candidate of each query.
        ties (`str`): a target that shares its score with others gets the rank that it has on average under random
            order (`"expected"`: 1 + better ones + half of the equal ones), at best or at worst.

    Returns:
        `np.ndarray` of shape `(queries,)`, float64.

    Raises:
        ValueError: a score that is not a number.
    """
    if torch.isnan(scores).any():
        raise ValueError(f"{int(torch.isnan(scores).sum())} of {scores.numel()} scores are NaN: ranks mean nothing.")
    target_scores = scores.gather(1, targets[:, None])  # (queries, 1)
    better = (scores > target_scores).sum(1).double()
    equal = (scores == target_scores).sum(1).double() - 1  # other than the target itself
    share = {"optimistic": 0.0, "expected": 0.5, "pessimistic": 1.0}[ties]
    return (1 + better + share * equal).numpy()


def ranks_in_both_directions(
    score_blocks: Iterable[torch.Tensor], video_of_text: torch.Tensor, num_videos: int, ties: TiePolicy = "expected"
) -> tuple[np.ndarray, np.ndarray]:
    """Text-to-video ranks, one a text, and video-to-text ranks, one a video, from one pass over the scores.

    A video's score for another video's texts is the highest among them, so that its rank is the best rank of any of
    its own captions among the captions of others.

    Args:
        score_blocks (`Iterable[torch.Tensor]`): (some texts, all videos) each, that together cover all texts in order.
        video_of_text (`torch.Tensor` of shape `(texts,)`): the video that each text belongs to; each has one or more.
        num_videos (`int`): all videos.
    """
    text_ranks = []
    # best[owner, video]: how well the texts of `owner` fit `video`
    best = torch.full((num_videos, num_videos), -torch.inf)
    start = 0
    for block in score_blocks:
        owners = video_of_text[start : start + len(block)]
        text_ranks.append(ranks_of_targets(block, owners, ties))
        best.scatter_reduce_(0, owners[:, None].expand_as(block), block.to(best.dtype), reduce="amax")
        start += len(block)
    return np.concatenate(text_ranks), ranks_of_targets(best.t(), torch.arange(num_videos), ties)


def retrieval_metrics(ranks: np.ndarray, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """R@k in per cent for each k, median rank (MdR) and mean rank (MnR)."""
    recalls = {f"R@{k}": 100 * float(np.mean(ranks <= k)) for k in at}
    return {**recalls, "MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


__all__ = ["ranks_in_both_directions", "ranks_of_targets", "retrieval_metrics"]
