# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Losses of PIG on embeddings, over the batches of all processes as if they were one batch.

B: batch size of this process, A: total batch size over all processes, D: embedding dimension, S: context tokens.

Each process computes a share of the loss over the total batch: its queries against all videos, and all queries against
its videos. Gathering embeddings returns the gradients of all shares to the process that owns an embedding, and DDP and
FSDP average the gradients of parameters over the processes. A share is therefore scaled so that the *mean* of the
shares is the loss: several processes train exactly as one process with the total batch, even if their B differ.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint


# Maximum number of elements held for one block of logits (16 MiB in float32). A block of a larger matrix is computed
# again in the backward pass instead of being stored.
MAX_BLOCK_ELEMENTS = 2**22

# Takes Q text embeddings, `(Q, D)`, and the embeddings of B videos, and returns their cosines, `(Q, B)`.
Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class PigLosses(NamedTuple):
    """Losses of [`PigForRetrieval`], `torch.Tensor` of shape `()` each, as documented in [`PigOutput`]."""

    loss: torch.Tensor | None = None
    retrieval_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    reranking_loss: torch.Tensor | None = None


def compute_losses(
    logits_per_text: torch.Tensor,
    similarity: Similarity,
    logit_scale: torch.Tensor,
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    pseudo_query_embeds: torch.Tensor | None = None,
    reconstruction_loss_weight: float = 1.0,
    caption_ids: torch.Tensor | None = None,
    over_processes: bool = False,
    context_embeds: torch.Tensor | None = None,
    reranking_loss_weight: float = 1.0,
) -> PigLosses:
    """Compute the losses of B matching pairs of a query and a video.

    Args:
        logits_per_text (`torch.Tensor` of shape `(B, B)`): scaled similarities, as [`compute_logits`] returns them.
        similarity (`Callable`): cosines of text and video embeddings, as in [`compute_logits`].
        logit_scale (`torch.Tensor` of shape `()`): factor on the cosines.
        text_embeds (`torch.Tensor` of shape `(B, D)`): embedding of each query.
        video_embeds (`torch.Tensor` of shape `(B, D)` or `(B, S, D)`): embeddings of the matching videos.
        pseudo_query_embeds (`torch.Tensor` of shape `(B, D)`, *optional*): adds the reconstruction loss.
        reconstruction_loss_weight (`float`, *optional*, defaults to 1.0): weight of the reconstruction loss.
        caption_ids (`torch.LongTensor` of shape `(B,)`, *optional*): as in [`contrastive_loss`].
        over_processes (`bool`, *optional*, defaults to `False`): compute the losses of the total batch.
        context_embeds (`torch.Tensor` of shape `(B, S, D)`, *optional*): context tokens of the videos, which
            `similarity` takes too; adds the re-ranking loss.
        reranking_loss_weight (`float`, *optional*, defaults to 1.0): weight of the re-ranking loss.

    Returns:
        [`PigLosses`].

    Raises:
        ValueError: the numbers of queries and videos or the shape of `caption_ids` do not match.
    """
    batch_size = video_embeds.shape[0]
    if text_embeds.shape[0] != batch_size:
        raise ValueError(
            f"return_loss needs one text per video, in the same order; got {text_embeds.shape[0]} texts and "
            f"{batch_size} videos."
        )
    if caption_ids is not None and caption_ids.shape != (batch_size,):
        raise ValueError(
            f"caption_ids has shape {tuple(caption_ids.shape)}; expected one number per text, ({batch_size},)."
        )
    batch_sizes = gather_batch_sizes(video_embeds) if over_processes else [batch_size]

    # The annotation is a string because torch 2.9 cannot compile a function that makes a union of types.
    def loss_of(embeds: torch.Tensor, logits: "torch.Tensor | None" = None) -> torch.Tensor:
        if len(batch_sizes) > 1 or batch_size**2 > MAX_BLOCK_ELEMENTS:
            return global_contrastive_loss(similarity, logit_scale, text_embeds, embeds, batch_sizes, caption_ids)
        if logits is None:
            logits = compute_logits(similarity, logit_scale, text_embeds, embeds)
        return contrastive_loss(logits, caption_ids)

    retrieval_loss = loss = loss_of(video_embeds, logits_per_text)
    reconstruction = reranking_loss = None
    if pseudo_query_embeds is not None:
        reconstruction = mean_over_processes(reconstruction_loss(pseudo_query_embeds, text_embeds), batch_sizes)
        loss = loss + reconstruction_loss_weight * reconstruction
    if context_embeds is not None:
        reranking_loss = loss_of(context_embeds)
        loss = loss + reranking_loss_weight * reranking_loss
    return PigLosses(loss, retrieval_loss, reconstruction, reranking_loss)


def mean_losses(losses: Iterable[PigLosses]) -> PigLosses:
    """Compute the mean of each loss; a loss that is `None` stays so."""
    return PigLosses(*(None if found[0] is None else torch.stack(found).mean() for found in zip(*losses, strict=True)))


def compute_logits(
    similarity: Similarity, logit_scale: torch.Tensor, text_embeds: torch.Tensor, video_embeds: torch.Tensor
) -> torch.Tensor:
    """Compute scaled similarities, in blocks of queries if the matrix and its intermediates are large.

    Args:
        similarity (`Callable`): takes text embeddings, `(Q, D)`, and `video_embeds`, and returns cosines, `(Q, B)`.
        logit_scale (`torch.Tensor` of shape `()`): factor on the cosines.
        text_embeds (`torch.Tensor` of shape `(Q, D)`): embedding of each query.
        video_embeds (`torch.Tensor` of shape `(B, D)` or `(B, S, D)`): embeddings of the videos.

    Returns:
        `torch.Tensor` of shape `(Q, B)`.
    """

    def logits_of(queries: torch.Tensor) -> torch.Tensor:
        return logit_scale * similarity(queries, video_embeds)

    rows = _rows_per_block(video_embeds.shape[0], video_embeds)
    if text_embeds.shape[0] <= rows:
        return logits_of(text_embeds)
    return torch.cat([checkpoint(logits_of, queries, use_reentrant=False) for queries in text_embeds.split(rows)])


def contrastive_loss(logits_per_text: torch.Tensor, caption_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the cross entropy over videos for each query plus that over queries for each video (a sum, not a mean).

    This is the retrieval loss of arXiv 2509.04773.

    Args:
        logits_per_text (`torch.Tensor` of shape `(B, B)`): scaled similarities; query i belongs to video i.
        caption_ids (`torch.LongTensor` of shape `(B,)`, *optional*): equal numbers mark identical captions. An
            identical caption also describes the other video, so such a pair is not used as a negative.

    Returns:
        `torch.Tensor` of shape `()`; 2 log B if all logits are equal.
    """
    return _cross_entropy(logits_per_text, 0, caption_ids) + _cross_entropy(logits_per_text.t(), 0, caption_ids)


def global_contrastive_loss(
    similarity: Similarity,
    logit_scale: torch.Tensor | float,
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    batch_sizes: list[int],
    caption_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute [`contrastive_loss`] over the pairs of all processes; no process holds the (A, A) matrix.

    This process computes (B, A) logits in each direction, in blocks of at most `MAX_BLOCK_ELEMENTS` elements. Value
    and gradient are those of [`mean_over_processes`]. Each pair is scored once per direction: if `similarity` has
    dropout, the two scores differ.

    Args:
        similarity (`Callable`): cosines of text and video embeddings, as in [`compute_logits`].
        logit_scale (`torch.Tensor` of shape `()` or `float`): factor on the cosines.
        text_embeds (`torch.Tensor` of shape `(B, D)`): text embeddings of this process.
        video_embeds (`torch.Tensor` of shape `(B, D)` or `(B, S, D)`): the matching videos, in the same order.
        batch_sizes (`list[int]`): result of [`gather_batch_sizes`].
        caption_ids (`torch.LongTensor` of shape `(B,)`, *optional*): as in [`contrastive_loss`]; a caption has the
            same number on all processes.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    batch_size = batch_sizes[dist.get_rank()] if len(batch_sizes) > 1 else batch_sizes[0]
    offset = sum(batch_sizes[: dist.get_rank()]) if len(batch_sizes) > 1 else 0
    all_texts = gather_with_gradient(text_embeds, batch_sizes)
    all_videos = gather_with_gradient(video_embeds, batch_sizes)
    all_ids = None if caption_ids is None else gather_with_gradient(caption_ids, batch_sizes)

    def loss_of_texts(texts: torch.Tensor, first: int) -> torch.Tensor:
        return _cross_entropy(logit_scale * similarity(texts, all_videos), first, all_ids, reduction="sum")

    def loss_of_videos(videos: torch.Tensor, first: int) -> torch.Tensor:
        return _cross_entropy((logit_scale * similarity(all_texts, videos)).t(), first, all_ids, reduction="sum")

    rows = _rows_per_block(sum(batch_sizes), video_embeds)
    run = partial(checkpoint, use_reentrant=False) if batch_size > rows else _call
    losses = [
        run(loss_of_rows, embeds[start : start + rows], offset + start)
        for loss_of_rows, embeds in ((loss_of_texts, text_embeds), (loss_of_videos, video_embeds))
        for start in range(0, batch_size, rows)
    ]
    return mean_over_processes(torch.stack(losses).sum() / batch_size, batch_sizes)


def reconstruction_loss(pseudo_query_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Compute `2 - 2 * cosine` of pseudo-query and query, averaged over the pairs.

    The gradient reaches both sides, as in the authors' code: the query also moves towards the pseudo-query.

    Args:
        pseudo_query_embeds (`torch.Tensor` of shape `(B, D)`): generated pseudo-queries.
        text_embeds (`torch.Tensor` of shape `(B, D)`): embeddings of the matching queries.

    Returns:
        `torch.Tensor` of shape `()`, from 0 (same direction) to 4 (opposite directions).
    """
    return (2 - 2 * nn.functional.cosine_similarity(pseudo_query_embeds, text_embeds, dim=-1)).mean()


def gather_batch_sizes(embeds: torch.Tensor) -> list[int]:
    """Return the batch size of each process in the order of ranks; `[B]` outside `torch.distributed`.

    All processes must call this function, with tensors of the same number of dimensions.

    Raises:
        ValueError: the shapes differ in more than their first dimension (raised on all processes).
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [embeds.shape[0]]
    shape = torch.tensor(embeds.shape, device=embeds.device)
    gathered = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, shape)
    shapes = [tuple(other.tolist()) for other in gathered]
    if len({other[1:] for other in shapes}) > 1:
        raise ValueError(
            f"The processes hold embeddings of shapes {', '.join(map(str, shapes))}, which may differ in their first "
            "dimension only. Give all processes clips with the same number of frames."
        )
    return [other[0] for other in shapes]


def gather_with_gradient(embeds: torch.Tensor, batch_sizes: list[int] | None = None) -> torch.Tensor:
    """Concatenate the tensors of all processes along the batch, (B, ...) -> (A, ...).

    The gradient of an embedding is the *sum* of its gradients in the backward passes of all processes. Outside
    `torch.distributed` the input is returned. All processes must call this function; their B may differ.

    Args:
        embeds (`torch.Tensor` of shape `(B, ...)`): tensor of this process.
        batch_sizes (`list[int]`, *optional*): result of [`gather_batch_sizes`], which saves calling it again.

    Returns:
        `torch.Tensor` of shape `(A, ...)`.
    """
    batch_sizes = gather_batch_sizes(embeds) if batch_sizes is None else batch_sizes
    if len(batch_sizes) == 1:
        return embeds
    return _Gather.apply(embeds, batch_sizes)


def mean_over_processes(mean: torch.Tensor, batch_sizes: list[int]) -> torch.Tensor:
    """Compute the mean over the pairs of all processes from the mean of each process.

    The value is the same on all processes. The gradient is that of this process's share times the number of
    processes: gradients that are averaged over the processes, as in DDP and FSDP, are those of the total mean.

    Args:
        mean (`torch.Tensor` of shape `()`): mean over the B pairs of this process.
        batch_sizes (`list[int]`): result of [`gather_batch_sizes`]; for one process, `mean` is returned.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    if len(batch_sizes) == 1:
        return mean
    share = mean * (len(batch_sizes) * batch_sizes[dist.get_rank()] / sum(batch_sizes))
    value = share.detach().clone()
    dist.all_reduce(value)
    return value / len(batch_sizes) + (share - share.detach())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeds: torch.Tensor, batch_sizes: list[int]) -> torch.Tensor:
        ctx.batch_sizes = batch_sizes
        # Tensors of different sizes would crash `all_gather`: pad to the longest, and cut after gathering.
        padded = embeds.new_zeros(max(batch_sizes), *embeds.shape[1:])
        padded[: embeds.shape[0]] = embeds
        gathered = [torch.empty_like(padded) for _ in batch_sizes]
        dist.all_gather(gathered, padded)
        return torch.cat([other[:size] for other, size in zip(gathered, batch_sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.batch_sizes)[dist.get_rank()], None


def _cross_entropy(
    logits: torch.Tensor, first: int, caption_ids: torch.Tensor | None, reduction: str = "mean"
) -> torch.Tensor:
    """Compute the cross entropy of (rows, A) logits in which row i belongs to column `first + i`.

    Other columns with the caption of the row are ignored.
    """
    target = torch.arange(first, first + logits.shape[0], device=logits.device)
    if caption_ids is not None:
        columns = torch.arange(logits.shape[1], device=logits.device)
        same_caption = caption_ids[target].unsqueeze(1) == caption_ids  # (rows, A)
        logits = logits.masked_fill(same_caption & (target.unsqueeze(1) != columns), -torch.inf)
    return nn.functional.cross_entropy(logits, target, reduction=reduction)


def _rows_per_block(num_columns: int, video_embeds: torch.Tensor) -> int:
    """Return how many rows of logits, with their intermediates, are computed at a time."""
    # Videos of context tokens (`single_tower`) are pooled for each query: each pair has an embedding of D elements.
    elements_per_pair = video_embeds.shape[-1] if video_embeds.ndim == 3 else 1
    return max(1, MAX_BLOCK_ELEMENTS // (num_columns * elements_per_pair))


def _call(function: Callable, *args):
    return function(*args)


__all__ = [
    "PigLosses",
    "compute_logits",
    "compute_losses",
    "contrastive_loss",
    "gather_batch_sizes",
    "gather_with_gradient",
    "global_contrastive_loss",
    "mean_losses",
    "mean_over_processes",
    "reconstruction_loss",
]
