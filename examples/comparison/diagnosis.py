"""Diagnose trained models: a hybrid's pseudo-query, interaction and losses, and the interaction of a single-tower.

Shapes: B videos, Q captions, S context tokens, D `projection_dim`.
"""

import copy
import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import nn

from modeling_pig import PigForRetrieval, PigProcessor
from modeling_pig.encoding.texts import encode_texts
from modeling_pig.evaluation.metrics import ranks_in_both_directions, retrieval_metrics
from modeling_pig.training.recipe import Recipe
from modeling_pig.training.start import part_of


def diagnose_hybrid(model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any) -> dict[str, Any]:
    """Compute all figures of a trained hybrid on the rows of a split, except those of its losses."""
    encoded = _encode(model, processor, recipe, rows)
    return {
        "pseudo_query": pseudo_query_cosines(**encoded),
        "attention": attention_entropy(model, encoded["pseudo_queries"], encoded["context"]),
        "recall": oracle_recall(model, **encoded),
    }


@torch.inference_mode()
def _encode(model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any) -> dict[str, torch.Tensor]:
    features = _video_features(model, processor, recipe, rows)
    captions = list(rows["captions"])
    encoded = {
        "texts": encode_texts(model, processor, [c for row in captions for c in row], recipe.data.max_text_tokens),
        "video_of_text": torch.tensor([number for number, row in enumerate(captions) for _ in row]),
        "context": torch.cat([batch.context_embeds for batch in features]),  # (B, S, D)
    }
    if model.config.framework == "hybrid":
        encoded["pseudo_queries"] = torch.cat([batch.pseudo_query_embeds for batch in features])  # (B, D)
        videos = torch.cat([batch.pooler_output for batch in features])  # (B, D)
        encoded["videos"] = nn.functional.normalize(videos, dim=-1)
    return encoded


def _video_features(model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any) -> list[Any]:
    videos, size = list(rows["video"]), recipe.evaluation.batch_size
    return [
        model.get_video_features(**processor(videos=videos[i : i + size], return_tensors="pt"))
        for i in range(0, len(videos), size)
    ]


@torch.inference_mode()
def attention_of_hybrid(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any
) -> dict[str, float]:
    """Compute the [`attention_entropy`] of a split's videos, each with its pseudo-query."""
    features = _video_features(model, processor, recipe, rows)
    queries, context = (
        torch.cat([batch[name] for batch in features]) for name in ("pseudo_query_embeds", "context_embeds")
    )
    return attention_entropy(model, queries, context)


@torch.inference_mode()
def mean_query(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any, num_captions: int = 2000
) -> torch.Tensor:
    """Return the normalised mean embedding, (D,), of the first captions of the training rows."""
    captions = [captions[0] for captions in rows[:num_captions]["captions"]]
    return nn.functional.normalize(
        encode_texts(model, processor, captions, recipe.data.max_text_tokens).mean(dim=0), dim=-1
    )


@torch.inference_mode()
def diagnose_single_tower(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any, mean: torch.Tensor
) -> dict[str, Any]:
    """Diagnose the interaction of a trained single-tower.

    Returns:
        `dict`: `attention`, for a true caption of each video; and `recall`, with each query, and with the query
        `mean`, (D,), for all videos, which leaves one vector per video.
    """
    encoded = _encode(model, processor, recipe, rows)
    texts, video_of_text, context = encoded["texts"], encoded["video_of_text"], encoded["context"]
    first = [int((video_of_text == number).nonzero()[0]) for number in range(len(context))]
    scores = {
        "each_query": _as_single_tower(model, texts, context),
        "the_mean_query_for_all": texts @ _pooled(model.interaction, mean, context).t(),
    }
    return {
        "attention": attention_entropy(model, texts[first], context),
        "recall": {name: _text_to_video(found, video_of_text) for name, found in scores.items()},
    }


def _pooled(interaction: nn.Module, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Return the normalised embeddings of videos, (B, D), all pooled for one query, (D,)."""
    return nn.functional.normalize(interaction(query[None, None], context)[:, 0], dim=-1)


@torch.inference_mode()
def _as_single_tower(model: PigForRetrieval, texts: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Return the scores, (Q, B), of videos that are pooled for each real query."""
    scores = []
    for block in texts.split(32):
        pooled = nn.functional.normalize(model.interaction(block[None], context), dim=-1)  # (B, 32, D)
        scores.append(torch.einsum("qd,bqd->qb", block, pooled))
    return torch.cat(scores)


def _text_to_video(scores: torch.Tensor, video_of_text: torch.Tensor) -> dict[str, float]:
    ranks = ranks_in_both_directions(scores.__getitem__, video_of_text, scores.shape[1])
    return retrieval_metrics(ranks["text_to_video"])


def pseudo_query_cosines(
    texts: torch.Tensor, video_of_text: torch.Tensor, pseudo_queries: torch.Tensor, **_: Any
) -> dict[str, float]:
    """Return mean cosines of pseudo-queries and captions.

    Returns:
        `dict`: cosine of pseudo-query and caption over `true_pairs` and `wrong_pairs`; of two captions of one video
        and of different videos; and of the mean caption with all captions, which a pseudo-query without any
        information on its video can reach.
    """
    cosines = texts @ nn.functional.normalize(pseudo_queries, dim=-1).t()  # (Q, B)
    is_true = nn.functional.one_hot(video_of_text, len(pseudo_queries)).bool()
    among_texts = texts @ texts.t()
    other = video_of_text[:, None] != video_of_text
    return {
        "true_pairs": float(cosines[is_true].mean()),
        "wrong_pairs": float(cosines[~is_true].mean()),
        "mean_text_with_texts": float((texts @ nn.functional.normalize(texts.mean(dim=0), dim=-1)).mean()),
        "texts_of_other_videos": float(among_texts[other].mean()),
        "texts_of_one_video": float(among_texts[~other & ~torch.eye(len(texts), dtype=torch.bool)].mean()),
    }


@torch.inference_mode()
def attention_entropy(model: PigForRetrieval, queries: torch.Tensor, context: torch.Tensor) -> dict[str, float]:
    """Return figures of the interaction's attention for the query, (B, D), of each video.

    Returns:
        `dict`: entropy as a share of that of uniform attention (1: an average over all tokens), mean weight of the
        class token, mean largest weight, and the weight in uniform attention.
    """
    interaction = model.interaction
    heads = (interaction.num_heads, -1)
    query = interaction.q_proj(interaction.layer_norm1(queries)).unflatten(-1, heads)  # (B, heads, D / heads)
    key = interaction.k_proj(interaction.layer_norm1(context)).unflatten(-1, heads)  # (B, S, heads, D / heads)
    logits = torch.einsum("bhd,bshd->bhs", query, key) / math.sqrt(query.shape[-1])
    weights = logits.softmax(dim=-1)  # (B, heads, S)
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(-1)
    return {
        "entropy_of_uniform": float(entropy.mean()) / math.log(context.shape[1]),
        "weight_of_class_token": float(weights[..., 0].mean()),
        "largest_weight": float(weights.amax(-1).mean()),
        "uniform_weight": 1 / context.shape[1],
    }


@torch.inference_mode()
def oracle_recall(
    model: PigForRetrieval,
    texts: torch.Tensor,
    video_of_text: torch.Tensor,
    pseudo_queries: torch.Tensor,
    context: torch.Tensor,
    videos: torch.Tensor,
) -> dict[str, dict]:
    """Return text-to-video metrics for other video embeddings than the stored ones of the hybrid.

    `real_query_on_true_pairs` replaces the pseudo-query by the real query in the interaction with the correct video
    only: an oracle. `real_query_on_all_pairs` does so for every pair: the hybrid used as a single-tower.
    `pseudo_query_alone` and `class_token_alone` skip the interaction. Two controls show whether a video's pseudo-query
    matters for the stored embedding: `the_mean_pseudo_query_for_all`, and `uniform_attention`.
    """
    stored = texts @ videos.t()  # (Q, B)
    as_single_tower = _as_single_tower(model, texts, context)
    is_true = nn.functional.one_hot(video_of_text, len(videos)).bool()
    mean = nn.functional.normalize(pseudo_queries, dim=-1).mean(dim=0)
    uniform = copy.deepcopy(model.interaction)
    for parameter in uniform.q_proj.parameters():
        nn.init.zeros_(parameter)
    scores = {
        "stored": stored,
        "real_query_on_true_pairs": torch.where(is_true, as_single_tower, stored),
        "real_query_on_all_pairs": as_single_tower,
        "the_mean_pseudo_query_for_all": texts @ _pooled(model.interaction, mean, context).t(),
        "uniform_attention": texts @ _pooled(uniform, mean, context).t(),
        "pseudo_query_alone": texts @ nn.functional.normalize(pseudo_queries, dim=-1).t(),
        "class_token_alone": texts @ nn.functional.normalize(context[:, 0], dim=-1).t(),
    }
    return {name: _text_to_video(found, video_of_text) for name, found in scores.items()}


def gradient_cosines(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any, num_batches: int = 8
) -> dict[str, dict[str, float]]:
    """Compare the gradients of the retrieval and the reconstruction loss, by module that both reach.

    Returns:
        `dict`: by module the cosine of the two gradients (below 0 they oppose each other), and the ratio of their
        norms (reconstruction, with its weight, over retrieval): means over batches of training videos, without
        dropout.
    """
    parameters = dict(model.named_parameters())
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rng = np.random.default_rng(recipe.training.seed)
    for _ in range(num_batches):
        batch = rows.select(rng.permutation(len(rows))[: recipe.training.batch_size])
        captions = [captions[rng.integers(len(captions))] for captions in batch["captions"]]
        text_kwargs = {"max_length": recipe.data.max_text_tokens}
        inputs = processor(text=captions, videos=list(batch["video"]), text_kwargs=text_kwargs, return_tensors="pt")
        outputs = model(**inputs, return_loss=True)
        weighted = model.config.reconstruction_loss_weight * outputs.reconstruction_loss
        by_loss = [
            torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
            for loss in (outputs.retrieval_loss, weighted)
        ]
        parts = defaultdict(lambda: ([], []))
        for name, retrieval, reconstruction in zip(parameters, *by_loss, strict=True):
            if retrieval is not None and reconstruction is not None:
                part = part_of(name).removesuffix("_new")
                for key in (part, "all"):
                    parts[key][0].append(retrieval.flatten())
                    parts[key][1].append(reconstruction.flatten())
        for part, gradients in parts.items():
            first, second = (torch.cat(of_loss) for of_loss in gradients)
            if first.norm() > 0 and second.norm() > 0:
                cosine = nn.functional.cosine_similarity(first, second, dim=0)
                found[part].append((float(cosine), float(second.norm() / first.norm())))
    return {
        part: dict(zip(("cosine", "reconstruction_over_retrieval"), torch.tensor(pairs).mean(0).tolist(), strict=True))
        for part, pairs in found.items()
    }
