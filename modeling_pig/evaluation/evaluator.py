"""Encode a split of a benchmark and rank it in both directions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from modeling_pig import VideoDecodingError

from ..encoding.encoder import Encoder
from ..encoding.video_segment import VideoSegment
from ..encoding.videos import encode_videos
from .details import EvaluationDetails
from .metrics import (
    TiePolicy,
    bootstrap_intervals,
    ranks_in_both_directions,
    ranks_of_targets,
    ranks_with_querybank,
    recall_curves,
    retrieval_metrics,
)
from .records import Evaluation


CAPTIONS_PER_BLOCK = 512
MAX_POOLED_VALUES = 2**24  # values of videos that `single_tower` pools for each caption: 64 MB in float32


def evaluate(
    encoder: Encoder,
    split: Iterable[dict],
    batch_size: int = 16,
    num_threads: int | None = None,
    ties: TiePolicy = "expected",
    max_text_tokens: int | None = None,
    progress: bool = True,
    dual_softmax: bool = False,
    num_bootstrap: int = 0,
    seed: int = 0,
    rerank: int | None = None,
    querybank: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate text-to-video and video-to-text retrieval: every caption is a query, every video a candidate.

    Args:
        encoder (`Encoder`): model, see [`load_encoder`] and [`PigEncoder`].
        split (`Iterable[dict]`): rows with `video_id`, `video` (path; empty where the file is missing), `captions`
            (list of sentences), and optionally `start` and `end`, the part of the file in seconds. Rows may share a
            file.
        batch_size (`int`): videos per forward pass.
        num_threads (`int`, *optional*): files decoded at a time; by default one per core.
        ties (`str`): how tied scores are ranked, see [`ranks_of_targets`].
        max_text_tokens (`int`, *optional*): maximum number of tokens per caption; longer captions are truncated.
            Defaults to the limit of the tokenizer.
        progress (`bool`): show a progress bar while videos are encoded.
        dual_softmax (`bool`): also rank by dual softmax, see [`ranks_in_both_directions`]. It uses all queries at
            once, which a search does not have: its metrics are reported beside the plain ones, under separate names. A
            `single_tower` model computes its scores twice for it.
        num_bootstrap (`int`): number of bootstrap samples for 95 % intervals, see [`bootstrap_intervals`]; 0
            computes none.
        seed (`int`): seed of the bootstrap.
        rerank (`int`, *optional*): also rank with re-ranking: the interaction of a `hybrid` or `single_tower` pools
            the best `rerank` videos of each query for the query itself, and orders them by the new scores. The best
            ones are those by a vector per video, for `single_tower` the class token. The metrics are reported under a
            separate name.
        querybank (`Sequence[str]`, *optional*): also rank from text to video with QB-Norm and these queries, such as
            the training captions, see [`ranks_with_querybank`]. The metrics are reported under a separate name.

    Returns:
        [`Evaluation`]: R@1, R@5, R@10, R@50 in per cent, MdR and MnR in both directions, with dual softmax and
        intervals if they were asked for. A video that is missing or cannot be decoded leaves the gallery together
        with its captions, and is listed in `failures`. `details` holds ranks per query, embeddings and scores.

    Raises:
        ValueError: a video has no captions, no video can be decoded, scores are NaN or infinite, `rerank` is less than
            1 or the model cannot re-rank, or `querybank` is empty.
    """
    if rerank is not None and rerank < 1:
        raise ValueError(f"rerank is {rerank}: expected 1 or more.")
    if rerank is not None and encoder.num_context_tokens is None:
        raise ValueError(f"rerank is {rerank}, and the model cannot re-rank: that needs a hybrid or single_tower.")
    if querybank is not None and not querybank:
        raise ValueError("The querybank is empty: give queries, such as the training captions.")
    rows = list(split)
    for row in rows:
        if not row["captions"]:
            raise ValueError(f"The video {row['video_id']} has no captions: add captions, or remove it.")
    was_training = encoder.model.training
    encoder.model.eval()
    failures = [f"{row['video_id']}: its file is missing" for row in rows if not row["video"]]
    with_file = [row for row in rows if row["video"]]
    segments = [VideoSegment(row["video"], row.get("start"), row.get("end")) for row in with_file]
    undecodable: list[VideoDecodingError] = []
    encoded: list[dict] = []
    video_embeds: list[torch.Tensor] = []
    context_embeds: list[Any] = []
    batches = encode_videos(encoder, segments, undecodable, batch_size, num_threads)
    with tqdm(total=len(segments), desc="encoding", unit="video", disable=not progress, leave=False) as bar:
        for batch in batches:
            encoded += [with_file[position] for position in batch.positions]
            video_embeds.append(batch.embeddings)
            if encoder.ranks_by_interaction or rerank is not None:
                context_embeds.append(batch.context_embeds)
            bar.update(len(encoded) + len(undecodable) - bar.n)
    failures += [str(failure) for failure in undecodable]
    if not encoded:
        first = failures[0] if failures else "the split is empty"
        raise ValueError(f"None of the {len(rows)} videos can be decoded; the first: {first}")

    captions = [caption for row in encoded for caption in row["captions"]]
    video_of_caption = torch.tensor([index for index, row in enumerate(encoded) for _ in row["captions"]])
    caption_embeds = encoder.encode_texts(captions, max_text_tokens)
    by_vector = Scores(encoder, caption_embeds, torch.cat(video_embeds))
    by_interaction = Scores(encoder, caption_embeds, torch.cat(context_embeds)) if context_embeds else by_vector
    scores = by_interaction if encoder.ranks_by_interaction else by_vector
    with torch.inference_mode():
        ranks = ranks_in_both_directions(
            scores, video_of_caption, len(encoded), ties, dual_softmax, block_size=CAPTIONS_PER_BLOCK
        )
        if rerank is not None:
            ranks["text_to_video_reranked"] = _rank_again(by_vector, by_interaction, video_of_caption, rerank, ties)
        if querybank is not None:
            bank = Scores(encoder, encoder.encode_texts(querybank, max_text_tokens), scores.video_embeds)
            ranks["text_to_video_qb_norm"] = ranks_with_querybank(
                scores, bank, len(querybank), video_of_caption, len(encoded), ties, CAPTIONS_PER_BLOCK
            )
    encoder.model.train(was_training)
    fields: dict[str, Any] = {direction: retrieval_metrics(found) for direction, found in ranks.items()}
    if rerank is not None:
        fields["rerank"] = rerank
    if querybank is not None:
        fields["num_querybank"] = len(querybank)
    if num_bootstrap:
        video_of_query = {"text": video_of_caption.numpy(), "video": torch.arange(len(encoded)).numpy()}
        fields["intervals_95"] = {
            direction: bootstrap_intervals(found, video_of_query[direction.split("_")[0]], num_bootstrap, seed)
            for direction, found in ranks.items()
        }
        fields |= {"num_bootstrap": num_bootstrap, "seed": seed}
    return Evaluation(
        **fields,
        recall_curve=recall_curves(ranks, len(encoded)),
        num_queries=len(captions),
        num_videos=len(encoded),
        num_videos_in_split=len(rows),
        ties=ties,
        failures=failures,
        details=EvaluationDetails(
            queries=captions,
            video_of_query=video_of_caption.numpy(),
            video_ids=[row["video_id"] for row in encoded],
            ranks=ranks,
            scores=scores,
            query_embeddings=caption_embeds,
            video_embeddings=None if encoder.ranks_by_interaction else by_vector.video_embeds,
        ),
    )


class Scores:
    """Scores, on the CPU, of a range of captions with all videos.

    Args:
        encoder (`Encoder`): model that pools context tokens for a caption.
        caption_embeds (`torch.Tensor` of shape `(captions, D)`): normalised embeddings of the captions.
        video_embeds (`torch.Tensor` of shape `(videos, D)` or `(videos, S, D)`): normalised embeddings, or context
            tokens.
    """

    def __init__(self, encoder: Encoder, caption_embeds: torch.Tensor, video_embeds: torch.Tensor):
        is_pooled = video_embeds.ndim == 3
        dtype = encoder.dtype if is_pooled else torch.float32  # the scores of context tokens pass through weights
        block_size = len(video_embeds)
        self.video_embeds = video_embeds
        if is_pooled:
            block_size = max(MAX_POOLED_VALUES // (CAPTIONS_PER_BLOCK * video_embeds.shape[-1]), 1)
        self._score = encoder.score_context if is_pooled else _dot_products
        self._captions = caption_embeds.to(encoder.device, dtype)
        self._blocks = video_embeds.to(encoder.device, dtype).split(block_size)

    def __call__(self, rows: slice) -> torch.Tensor:
        captions = self._captions[rows]
        return torch.cat([self._score(captions, videos) for videos in self._blocks], dim=1).cpu()


def _dot_products(caption_embeds: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
    return caption_embeds @ video_embeds.t()


def _rank_again(
    scores: Scores, pooled_scores: Scores, video_of_caption: torch.Tensor, count: int, ties: TiePolicy
) -> np.ndarray:
    """Return the rank of each caption's video if the best `count` videos are ordered by their pooled scores."""
    ranks = []
    for start in range(0, len(video_of_caption), CAPTIONS_PER_BLOCK):
        rows = slice(start, start + CAPTIONS_PER_BLOCK)
        first = scores(rows).float()
        best = first.topk(min(count, first.shape[1]), dim=1).indices
        # Cosines differ by at most 2: all other videos keep their order below the best ones.
        again = (first - 3).scatter(1, best, pooled_scores(rows).float().gather(1, best))
        ranks.append(ranks_of_targets(again, video_of_caption[rows], ties))
    return np.concatenate(ranks)


__all__ = ["CAPTIONS_PER_BLOCK", "Scores", "evaluate"]
