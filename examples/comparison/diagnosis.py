"""Why a hybrid does what it does: its pseudo-query, its interaction, its two losses, and what the real query would do;
and whether a single-tower's interaction does more.

Shapes: B videos, Q captions, S context tokens, D width of the joint space.
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
    """All that is asked of a trained hybrid but for its losses, of the rows of a split."""
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
        "context": torch.cat([part.context_embeds for part in features]),  # (B, S, D)
    }
    if model.config.framework == "hybrid":
        encoded["pseudo_queries"] = torch.cat([part.pseudo_query_embeds for part in features])  # (B, D)
        videos = torch.cat([part.pooler_output for part in features])  # (B, D)
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
    """[`attention_entropy`] of a split's videos, each with its own pseudo-query."""
    features = _video_features(model, processor, recipe, rows)
    queries, context = (
        torch.cat([part[name] for part in features]) for name in ("pseudo_query_embeds", "context_embeds")
    )
    return attention_entropy(model, queries, context)


@torch.inference_mode()
def mean_query(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, trained: Any, num_captions: int = 2000
) -> torch.Tensor:
    """(D,), normalised: the mean of the embeddings of some captions that the model was trained on."""
    captions = [captions[0] for captions in trained[:num_captions]["captions"]]
    return nn.functional.normalize(
        encode_texts(model, processor, captions, recipe.data.max_text_tokens).mean(dim=0), dim=-1
    )


@torch.inference_mode()
def diagnose_single_tower(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any, mean: torch.Tensor
) -> dict[str, Any]:
    """What a trained single-tower's interaction does with its queries: its attention for a true caption of each video,
    and the figures with one query, `mean` (D,), in the place of all, which leaves one vector a video."""
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
    """Videos (B, D), normalised, all pooled for one query (D,)."""
    return nn.functional.normalize(interaction(query[None, None], context)[:, 0], dim=-1)


@torch.inference_mode()
def _as_single_tower(model: PigForRetrieval, texts: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Scores (Q, B) of each video pooled for each real query."""
    scores = []
    for some in texts.split(32):
        pooled = nn.functional.normalize(model.interaction(some[None], context), dim=-1)  # (B, 32, D)
        scores.append(torch.einsum("qd,bqd->qb", some, pooled))
    return torch.cat(scores)


def _text_to_video(scores: torch.Tensor, video_of_text: torch.Tensor) -> dict[str, float]:
    ranks = ranks_in_both_directions(scores.__getitem__, video_of_text, scores.shape[1])
    return retrieval_metrics(ranks["text_to_video"])


def pseudo_query_cosines(
    texts: torch.Tensor, video_of_text: torch.Tensor, pseudo_queries: torch.Tensor, **_: Any
) -> dict[str, float]:
    """Mean cosine of pseudo-query and real query over true pairs and over all wrong ones; that of captions of a video
    and of different ones with one another; and of the mean caption with all captions, which is what a pseudo-query
    that says nothing of its video can reach."""
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
    """Entropy of the interaction's attention for each video's query (B, D), as a share of the uniform one's: 1 is an
    average over all tokens. Also the mean weight of the class token."""
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
    """Text-to-video figures when the video's embedding is not what the hybrid stores.

    `real_query_on_true_pairs` puts the real query in the pseudo-query's place in the interaction with its own video
    only: an oracle, which knows the answer. `real_query_on_all_pairs` does so for every pair: the hybrid used as a
    single-tower. `pseudo_query_alone` and `class_token_alone` leave the interaction out. Two controls tell whether a
    video's own pseudo-query matters to what is stored: `the_mean_pseudo_query_for_all`, and `uniform_attention`.
    """
    stored = texts @ videos.t()  # (Q, B)
    as_single_tower = _as_single_tower(model, texts, context)
    is_true = nn.functional.one_hot(video_of_text, len(videos)).bool()
    mean = nn.functional.normalize(pseudo_queries, dim=-1).mean(dim=0)
    blind = copy.deepcopy(model.interaction)
    for parameter in blind.q_proj.parameters():
        nn.init.zeros_(parameter)
    scores = {
        "stored": stored,
        "real_query_on_true_pairs": torch.where(is_true, as_single_tower, stored),
        "real_query_on_all_pairs": as_single_tower,
        "the_mean_pseudo_query_for_all": texts @ _pooled(model.interaction, mean, context).t(),
        "uniform_attention": texts @ _pooled(blind, mean, context).t(),
        "pseudo_query_alone": texts @ nn.functional.normalize(pseudo_queries, dim=-1).t(),
        "class_token_alone": texts @ nn.functional.normalize(context[:, 0], dim=-1).t(),
    }
    return {name: _text_to_video(found, video_of_text) for name, found in scores.items()}


def gradient_cosines(
    model: PigForRetrieval, processor: PigProcessor, recipe: Recipe, rows: Any, num_batches: int = 8
) -> dict[str, dict[str, float]]:
    """Cosine between the gradients of the retrieval and the reconstruction loss, by part of the model that both reach,
    and their ratio of lengths (reconstruction, with its weight, over retrieval): means over batches of training
    videos, without dropout. Below 0 the two pull a part apart."""
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
            first, second = (torch.cat(some) for some in gradients)
            if first.norm() > 0 and second.norm() > 0:
                cosine = nn.functional.cosine_similarity(first, second, dim=0)
                found[part].append((float(cosine), float(second.norm() / first.norm())))
    return {
        part: dict(zip(("cosine", "reconstruction_over_retrieval"), torch.tensor(pairs).mean(0).tolist(), strict=True))
        for part, pairs in found.items()
    }
