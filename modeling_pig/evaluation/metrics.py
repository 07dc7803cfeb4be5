"""Compute ranks from scores in blocks of queries, retrieval metrics from ranks, and bootstrap intervals."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch


TiePolicy = Literal["expected", "optimistic", "pessimistic"]
DUAL_SOFTMAX_SCALE = 100.0  # the factor that published figures with dual softmax use
QB_NORM_SCALE = 20.0  # the inverse temperature of the authors' code


def ranks_of_targets(scores: torch.Tensor, targets: torch.Tensor, ties: TiePolicy = "expected") -> np.ndarray:
    """Rank each query's target among all candidates, from 1.

    Args:
        scores (`torch.Tensor` of shape `(queries, candidates)`): higher is better.
        targets (`torch.Tensor` of shape `(queries,)`): the correct candidate of each query.
        ties (`str`): a target that shares its score with others gets the rank that it has on average under random
            order (`"expected"`: 1 + better ones + half of the equal ones), at best or at worst.

    Returns:
        `np.ndarray` of shape `(queries,)`, float64.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    lowest, highest = scores.aminmax()  # one pass, no copy; a NaN comes through
    if not (lowest.isfinite() and highest.isfinite()):
        wrong = int((~scores.isfinite()).sum())
        raise ValueError(
            f"{wrong} of {scores.numel()} scores are NaN or infinite and cannot be ranked: look for a model "
            "whose training diverged, or for half precision that overflows."
        )
    target_scores = scores.gather(1, targets[:, None])  # (queries, 1)
    better = (scores > target_scores).sum(1, dtype=torch.int32).double()  # int32 sums faster than the default
    equal = (scores == target_scores).sum(1, dtype=torch.int32).double() - 1  # other than the target itself
    share = {"optimistic": 0.0, "expected": 0.5, "pessimistic": 1.0}[ties]
    return (1 + better + share * equal).numpy()


def ranks_in_both_directions(
    score_block: Callable[[slice], torch.Tensor],
    video_of_text: torch.Tensor,
    num_videos: int,
    ties: TiePolicy = "expected",
    dual_softmax: bool = False,
    block_size: int = 512,
) -> dict[str, np.ndarray]:
    """Rank per text (text-to-video) and per video (video-to-text), without the whole matrix of scores.

    Memory holds one block of scores (block_size, videos) and, for video-to-text, one or two (videos, videos) matrices.

    If videos have several texts, video-to-text takes the highest score over the texts of each video (as in
    CLIP4Clip). The rank of a video is the rank of the highest score of its own texts among these maxima.

    Dual softmax multiplies each score with softmax(100 x score) over all queries of its direction: of text-to-video
    over all texts for each video, of video-to-text over all videos for each text, before the highest of a video's
    texts is taken - that is, on the matrix and on its transpose. (CLIP-ViP's code differs: it ranks the transpose of
    the text-to-video matrix for video-to-text too, and so normalises over the candidates there.) The sums over all
    texts are known after a first pass only, so `score_block` is asked for every block twice. It is computed in
    float64: a softmax in float32 underflows to 0, and so to ties, for a score about 1 below the highest.

    Args:
        score_block (`Callable[[slice], torch.Tensor]`): scores of some texts, a range of rows, with all videos, of
            shape (texts of the block, videos), on the CPU. For a matrix of scores, pass its `__getitem__`.
        video_of_text (`torch.Tensor` of shape `(texts,)`): the video of each text; each video has at least one text.
        num_videos (`int`): number of videos.
        ties (`str`): see [`ranks_of_targets`].
        dual_softmax (`bool`): rank by dual softmax as well.
        block_size (`int`): texts per block.

    Returns:
        `dict[str, np.ndarray]`: `text_to_video` of shape `(texts,)`, `video_to_text` of shape `(videos,)`; with dual
        softmax also `text_to_video_dual_softmax` and `video_to_text_dual_softmax`.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    assert torch.bincount(video_of_text, minlength=num_videos).all(), "a video without texts"
    blocks = [slice(start, start + block_size) for start in range(0, len(video_of_text), block_size)]
    videos = torch.arange(num_videos)
    text_ranks = []
    best = torch.full((num_videos, num_videos), -torch.inf)  # [owner of texts, video]
    if dual_softmax:
        best_weighted = best.double()
        log_sums = torch.full((num_videos,), -torch.inf, dtype=torch.float64)  # of each video, over all texts
    for rows in blocks:
        scores, owners = score_block(rows).float(), video_of_text[rows]
        text_ranks.append(ranks_of_targets(scores, owners, ties))
        _keep_best(best, owners, scores)
        if dual_softmax:
            logits = DUAL_SOFTMAX_SCALE * scores.double()
            _keep_best(best_weighted, owners, scores * logits.softmax(1))
            log_sums = torch.logaddexp(log_sums, logits.logsumexp(0))
    ranks = {
        "text_to_video": np.concatenate(text_ranks),
        "video_to_text": ranks_of_targets(best.t(), videos, ties),
    }
    if dual_softmax:
        text_ranks = []
        for rows in blocks:
            scores = score_block(rows).double()
            weighted = scores * (DUAL_SOFTMAX_SCALE * scores - log_sums).exp()
            text_ranks.append(ranks_of_targets(weighted, video_of_text[rows], ties))
        ranks["text_to_video_dual_softmax"] = np.concatenate(text_ranks)
        ranks["video_to_text_dual_softmax"] = ranks_of_targets(best_weighted.t(), videos, ties)
    return ranks


def _keep_best(best: torch.Tensor, owners: torch.Tensor, scores: torch.Tensor) -> None:
    """Raise each owner's row of `best` to the maximum over its texts' rows in `scores`, in place."""
    best.scatter_reduce_(0, owners[:, None].expand_as(scores), scores, reduce="amax")


def ranks_with_querybank(
    score_block: Callable[[slice], torch.Tensor],
    bank_block: Callable[[slice], torch.Tensor],
    num_bank: int,
    video_of_text: torch.Tensor,
    num_videos: int,
    ties: TiePolicy = "expected",
    block_size: int = 512,
) -> np.ndarray:
    """Rank per text with QB-Norm (Bogolin et al., CVPR 2022, arXiv 2112.12777): the dynamic inverted softmax.

    Videos that are the best result of a query of the bank are hubs. If the best result of a text is a hub, its scores
    become exp(20 x score) / sum over the bank of exp(20 x score of the video); otherwise they are unchanged. A search
    can do this, as it needs no other test queries. It is computed in float64, in logarithms.

    Args:
        score_block (`Callable[[slice], torch.Tensor]`): scores of some texts with all videos, as in
            [`ranks_in_both_directions`].
        bank_block (`Callable[[slice], torch.Tensor]`): scores of some queries of the bank with all videos.
        num_bank (`int`): queries in the bank.
        video_of_text (`torch.Tensor` of shape `(texts,)`): the video of each text.
        num_videos (`int`): number of videos.
        ties (`str`): see [`ranks_of_targets`].
        block_size (`int`): texts per block.

    Returns:
        `np.ndarray` of shape `(texts,)`.

    Raises:
        ValueError: a score that is NaN or infinite.
    """
    log_sums = torch.full((num_videos,), -torch.inf, dtype=torch.float64)  # of each video, over the bank
    is_hub = torch.zeros(num_videos, dtype=torch.bool)
    for start in range(0, num_bank, block_size):
        scores = bank_block(slice(start, start + block_size)).double()
        log_sums = torch.logaddexp(log_sums, (QB_NORM_SCALE * scores).logsumexp(0))
        is_hub[scores.argmax(1)] = True
    ranks = []
    for start in range(0, len(video_of_text), block_size):
        rows = slice(start, start + block_size)
        scores = score_block(rows).double()
        finds_hub = is_hub[scores.argmax(1)]
        scores = torch.where(finds_hub[:, None], QB_NORM_SCALE * scores - log_sums, scores)
        ranks.append(ranks_of_targets(scores, video_of_text[rows], ties))
    return np.concatenate(ranks)


def retrieval_metrics(ranks: np.ndarray, at: tuple[int, ...] = (1, 5, 10, 50)) -> dict[str, float]:
    """Return R@k in per cent for each k, median rank (MdR) and mean rank (MnR)."""
    recalls = {f"R@{k}": _recall(ranks, k) for k in at}
    return {**recalls, "MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def _recall(ranks: np.ndarray, k: int) -> float:
    return 100 * float(np.mean(ranks <= k))


def recall_curves(ranks: Mapping[str, np.ndarray], num_videos: int) -> dict[str, list]:
    """Return R@k in per cent over k, from 1 to the size of the gallery.

    Args:
        ranks (`Mapping[str, np.ndarray]`): from [`ranks_in_both_directions`].
        num_videos (`int`): videos in the gallery.

    Returns:
        `dict[str, list]`: `k`, which is 1, 2, 5, 10, 20, 50, ... below `num_videos`, and `num_videos`; and under the
        name of each entry of `ranks` its R@k at each k.
    """
    series = (step * 10**power for power in range(len(str(num_videos))) for step in (1, 2, 5))
    ks = [*(k for k in series if k < num_videos), num_videos]
    return {"k": ks, **{name: [_recall(found, k) for k in ks] for name, found in ranks.items()}}


def bootstrap_intervals(
    ranks: np.ndarray, video_of_query: np.ndarray, num_samples: int, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Return percentile bootstrap intervals of [`retrieval_metrics`]: their variation with the choice of test videos.

    Videos are drawn with replacement, each with all its queries (a cluster bootstrap). The captions of one video are
    found or missed together, so that drawing them one by one would take twenty captions of one video for twenty
    independent trials, and the intervals would be too narrow. The gallery is unchanged.

    Args:
        ranks (`np.ndarray` of shape `(queries,)`): from [`ranks_in_both_directions`].
        video_of_query (`np.ndarray` of shape `(queries,)`): the video that each query belongs to, from 0.
        num_samples (`int`): samples drawn; 1,000 give the ends of a 95 % interval to about a tenth of its width.
        seed (`int`): equal seeds give equal intervals.
        level (`float`): the share of samples inside.

    Returns:
        `dict[str, list[float]]`: `[low, high]` of each metric, in its unit.
    """
    generator = np.random.default_rng(seed)
    num_videos = int(video_of_query.max()) + 1
    samples = []
    for _ in range(num_samples):
        times_drawn = np.bincount(generator.integers(num_videos, size=num_videos), minlength=num_videos)
        samples.append(retrieval_metrics(np.repeat(ranks, times_drawn[video_of_query])))
    ends = [50 * (1 - level), 50 * (1 + level)]
    return {name: np.percentile([sample[name] for sample in samples], ends).tolist() for name in samples[0]}


__all__ = [
    "TiePolicy",
    "bootstrap_intervals",
    "ranks_in_both_directions",
    "ranks_of_targets",
    "ranks_with_querybank",
    "recall_curves",
    "retrieval_metrics",
]
