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
"""PIG losses on embeddings, over the batches of all processes as if they were one.

B: batch of this process, A: batch of all processes together, D: width of the joint space.

Every process computes its own share of a loss over the whole batch: its texts against all videos, all texts against
its videos. The gathers hand the gradients of all shares back to the process that an embedding came from, and DDP and
FSDP average the parameters' gradients over the processes. A share is therefore scaled so that its *mean* over the
processes is the loss: P processes train as one process with the whole batch does, whatever the sizes of their parts.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint


# Numbers held at a time for a block of similarities (16 MiB in float32). A block of a larger matrix is computed again
# in the backward pass instead of being kept.
MAX_BLOCK_ELEMENTS = 2**22


def gather_batch_sizes(embeds: torch.Tensor) -> list[int]:
    """The batch of every process, in the order of their ranks; `[B]` outside `torch.distributed`.

    All processes must call it, with tensors of the same number of dimensions.

    Raises:
        ValueError: on all processes, if the shapes differ in more than their first dimension.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [embeds.shape[0]]
    shape = torch.tensor(embeds.shape, device=embeds.device)
    gathered = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, shape)
    shapes = [tuple(other.tolist()) for other in gathered]
    if len({other[1:] for other in shapes}) > 1:
        raise ValueError(
            f"The processes hold embeddings of shapes {', '.join(map(str, shapes))}: they may differ in their first "
            "dimension only. Give all processes clips of one number of frames."
        )
    return [other[0] for other in shapes]


def gather_with_gradient(embeds: torch.Tensor, batch_sizes: list[int] | None = None) -> torch.Tensor:
    """Concatenates a tensor of every process along the batch, (B, ...) -> (A, ...).

    The gradient of an embedding is the *sum* of what the backward passes of all processes hand back for it. Outside
    `torch.distributed` the input is returned. All processes must call it; their B may differ.

    Args:
        embeds (`torch.Tensor` of shape `(B, ...)`): this process's part.
        batch_sizes (`list[int]`, *optional*): from `gather_batch_sizes`, to save asking again.
    """
    batch_sizes = gather_batch_sizes(embeds) if batch_sizes is None else batch_sizes
    if len(batch_sizes) == 1:
        return embeds
    return _Gather.apply(embeds, batch_sizes)


def mean_over_processes(mean: torch.Tensor, batch_sizes: list[int]) -> torch.Tensor:
    """The mean over the pairs of all processes, from each process's mean over its own.

    Its value is the same on all processes. Its gradient is that of this process's share, times the number of
    processes: averaged over the processes, as DDP and FSDP do, gradients are those of the whole mean.

    Args:
        mean (`torch.Tensor` of shape `()`): mean over this process's B pairs.
        batch_sizes (`list[int]`): from `gather_batch_sizes`; with one entry, `mean` is returned.
    """
    if len(batch_sizes) == 1:
        return mean
    share = mean * (len(batch_sizes) * batch_sizes[dist.get_rank()] / sum(batch_sizes))
    value = share.detach().clone()
    dist.all_reduce(value)
    return value / len(batch_sizes) + (share - share.detach())


def contrastive_loss(logits_per_text: torch.Tensor, caption_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Cross entropy over videos for each text plus over texts for each video: a sum, not the mean of the two.

    Args:
        logits_per_text (`torch.Tensor` of shape `(B, B)`): scaled similarities, text i belongs to video i.
        caption_ids (`torch.LongTensor` of shape `(B,)`, *optional*): equal numbers mark identical captions. What such
            a caption says is true of the other's video too, so that the two are not each other's negatives.

    Returns:
        `torch.Tensor` of shape `()`; 2 log B when all logits are equal. The retrieval loss of arXiv 2509.04773.
    """
    return _cross_entropy(logits_per_text, 0, caption_ids) + _cross_entropy(logits_per_text.t(), 0, caption_ids)


def global_contrastive_loss(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    batch_sizes: list[int],
    caption_ids: torch.Tensor | None = None,
    elements_per_pair: int = 1,
) -> torch.Tensor:
    """`contrastive_loss` over the pairs of all processes, from embeddings; no process holds the (A, A) matrix.

    This process computes (B, A) logits in each direction, and these in blocks of rows of at most `MAX_BLOCK_ELEMENTS`
    numbers. Value and gradient are those of [`mean_over_processes`]. A pair is scored anew in each direction; where
    `score` has dropout, it differs between the two.

    Args:
        score (`Callable`): Q texts and B videos -> `(Q, B)` scaled similarities.
        text_embeds (`torch.Tensor` of shape `(B, ...)`): this process's texts.
        video_embeds (`torch.Tensor` of shape `(B, ...)`): this process's videos, in the order of the texts.
        batch_sizes (`list[int]`): from `gather_batch_sizes`.
        caption_ids (`torch.LongTensor` of shape `(B,)`, *optional*): as in `contrastive_loss`; equal across processes.
        elements_per_pair (`int`): numbers that `score` holds for a pair.
    """
    batch_size = batch_sizes[dist.get_rank()] if len(batch_sizes) > 1 else batch_sizes[0]
    offset = sum(batch_sizes[: dist.get_rank()]) if len(batch_sizes) > 1 else 0
    all_texts = gather_with_gradient(text_embeds, batch_sizes)
    all_videos = gather_with_gradient(video_embeds, batch_sizes)
    all_ids = None if caption_ids is None else gather_with_gradient(caption_ids, batch_sizes)

    def text_rows(texts: torch.Tensor, first: int) -> torch.Tensor:
        return _cross_entropy(score(texts, all_videos), first, all_ids, reduction="sum")

    def video_rows(videos: torch.Tensor, first: int) -> torch.Tensor:
        return _cross_entropy(score(all_texts, videos).t(), first, all_ids, reduction="sum")

    rows = _rows_per_block(sum(batch_sizes), elements_per_pair)
    run = partial(checkpoint, use_reentrant=False) if batch_size > rows else _call
    losses = [
        run(loss_of_rows, embeds[start : start + rows], offset + start)
        for loss_of_rows, embeds in ((text_rows, text_embeds), (video_rows, video_embeds))
        for start in range(0, batch_size, rows)
    ]
    return mean_over_processes(torch.stack(losses).sum() / batch_size, batch_sizes)


def score_in_blocks(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    text_embeds: torch.Tensor,
    video_embeds: torch.Tensor,
    elements_per_pair: int,
) -> torch.Tensor:
    """`score(text_embeds, video_embeds)`, (Q, B), of which only a block of rows is held with its intermediates."""
    rows = _rows_per_block(video_embeds.shape[0], elements_per_pair)
    if text_embeds.shape[0] <= rows:
        return score(text_embeds, video_embeds)
    return torch.cat(
        [checkpoint(score, texts, video_embeds, use_reentrant=False) for texts in text_embeds.split(rows)]
    )


def reconstruction_loss(pseudo_query_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """2 - 2 cos(t_p, t), mean over the matching pairs, both (B, D). From 0 (same direction) to 4 (opposite).

    The gradient reaches both sides, as in the authors' code: the real query also moves towards the pseudo-query.
    """
    return (2 - 2 * nn.functional.cosine_similarity(pseudo_query_embeds, text_embeds, dim=-1)).mean()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeds: torch.Tensor, batch_sizes: list[int]) -> torch.Tensor:
        ctx.batch_sizes = batch_sizes
        # Tensors of unequal sizes would end the process: all are as long as the longest, and are cut to size after.
        padded = embeds.new_zeros(max(batch_sizes), *embeds.shape[1:])
        padded[: embeds.shape[0]] = embeds
        gathered = [torch.empty_like(padded) for _ in batch_sizes]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, batch_sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.batch_sizes)[dist.get_rank()], None


def _cross_entropy(
    logits: torch.Tensor, first: int, caption_ids: torch.Tensor | None, reduction: str = "mean"
) -> torch.Tensor:
    """Cross entropy of the rows of (rows, A) logits, where row i belongs to column `first + i`. Columns whose caption
    is the row's, but the row's own, are left out."""
    target = torch.arange(first, first + logits.shape[0], device=logits.device)
    if caption_ids is not None:
        columns = torch.arange(logits.shape[1], device=logits.device)
        same_caption = caption_ids[target].unsqueeze(1) == caption_ids  # (rows, A)
        logits = logits.masked_fill(same_caption & (target.unsqueeze(1) != columns), -torch.inf)
    return nn.functional.cross_entropy(logits, target, reduction=reduction)


def _rows_per_block(num_columns: int, elements_per_pair: int) -> int:
    return max(1, MAX_BLOCK_ELEMENTS // (num_columns * elements_per_pair))


def _call(function: Callable, *args):
    return function(*args)


__all__ = [
    "contrastive_loss",
    "gather_batch_sizes",
    "gather_with_gradient",
    "global_contrastive_loss",
    "mean_over_processes",
    "reconstruction_loss",
    "score_in_blocks",
]
