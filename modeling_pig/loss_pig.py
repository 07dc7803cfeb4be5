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
"""PIG losses on embeddings, and the gather that brings in the negatives of every process.

B: batch of one process, P: processes, D: width of the joint space.
"""

import torch
import torch.distributed as dist
from torch import nn


def gather_with_gradient(embeds: torch.Tensor) -> torch.Tensor:
    """Concatenates a tensor of every process along the batch, (B, ...) -> (P * B, ...); gradients flow to each.

    Outside `torch.distributed` it returns its input. All processes must call it, with equal shapes.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return embeds
    # Imported here: the module builds autograd functions that a torch without distributed lacks.
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(embeds.contiguous()))


def contrastive_loss(logits_per_text: torch.Tensor) -> torch.Tensor:
    """Cross entropy over videos for each text plus over texts for each video: a sum, not the mean of the two.

    Args:
        logits_per_text (`torch.Tensor` of shape `(B, B)`): scaled similarities, text i belongs to video i.

    Returns:
        `torch.Tensor` of shape `()`; 2 log B when all logits are equal. The retrieval loss of arXiv 2509.04773.
    """
    target = torch.arange(logits_per_text.shape[0], device=logits_per_text.device)
    return nn.functional.cross_entropy(logits_per_text, target) + nn.functional.cross_entropy(
        logits_per_text.t(), target
    )


def reconstruction_loss(pseudo_query_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """2 - 2 cos(t_p, t), mean over the matching pairs, both (B, D). From 0 (same direction) to 4 (opposite).

    The gradient reaches both sides, as in the authors' code: the real query also moves towards the pseudo-query.
    """
    return (2 - 2 * nn.functional.cosine_similarity(pseudo_query_embeds, text_embeds, dim=-1)).mean()


__all__ = ["contrastive_loss", "gather_with_gradient", "reconstruction_loss"]
