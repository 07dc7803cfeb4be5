"""Rank videos that an oracle pools: how much can a pseudo-query be worth that knows what will be asked?"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.encoding.videos import encode_videos
from modeling_pig.evaluation.metrics import ranks_of_targets, retrieval_metrics


@torch.inference_mode()
def rank_by_other_captions(encoder: PigEncoder, rows: Sequence[dict], max_text_tokens: int | None) -> dict[str, float]:
    """Compute the metrics of each caption if every video is pooled for the mean of its other captions.

    A stored vector cannot depend on the query. A pseudo-query that a model generates from a video can at best know
    what people say about it, as this oracle does; it cannot know which of these sentences will be asked.

    Args:
        encoder (`PigEncoder`): `single_tower`, whose interaction has learned from real queries.
        rows (`Sequence[dict]`): videos with the same number of captions, two or more.

    Returns:
        `dict[str, float]`: text-to-video metrics, see [`retrieval_metrics`].
    """
    context = torch.cat(
        [batch.context_embeds for batch in encode_videos(encoder, [row["video"] for row in rows], [])]
    )  # (B, S, D)
    captions = [caption for row in rows for caption in row["captions"]]
    texts = encoder.encode_texts(captions, max_text_tokens).unflatten(0, (len(rows), -1))  # (B, C, D)
    ranks = []
    for number in range(texts.shape[1]):
        others = torch.cat([texts[:, :number], texts[:, number + 1 :]], dim=1)  # (B, C - 1, D)
        queries = functional.normalize(others.mean(dim=1), dim=-1)
        pooled = encoder.model.interaction(queries.unsqueeze(1), context).squeeze(1)  # (B, D)
        pooled = functional.normalize(pooled, dim=-1)
        ranks.append(torch.from_numpy(ranks_of_targets(texts[:, number] @ pooled.t(), torch.arange(len(rows)))))
    return retrieval_metrics(torch.cat(ranks).numpy())
