"""Measure the costs of each way to search: seconds per query, bytes per video, parameters."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measure import interleave
from torch import nn

from modeling_pig import PigForRetrieval, PigProcessor


QUERY = "a small red circle moves left and then grows while a blue star spins on a plain grey ground"
NUM_RESULTS = 10
_BLOCK = 2000  # videos per pooling call
_STORED = "single_tower, keys and values stored"
_NUM_VECTORS = 4  # of the variants with several vectors per video


@torch.inference_mode()
def measure_costs(
    models: dict[str, PigForRetrieval],
    processor: PigProcessor,
    galleries: list[int],
    measured_bytes: int,
    rerank: list[int],
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure the costs of searches, with interleaved rounds.

    A gallery consists of random numbers of the stored shape: their values do not affect the time. Answering a query
    takes the text tower, the scores of all videos, and the top ten. `two_tower` and `hybrid` search alike, with one
    dot product per video, and are measured once. With four vectors per video, the best of four dot products is the
    score. Re-ranking finds the best N videos so, and pools their context tokens, stored in float16, for the query. A
    `single_tower` pools the context tokens of all videos. Its keys and values do not depend on the query: it is also
    measured with stored keys and values instead of the tokens: twice the bytes.

    Args:
        models (`dict[str, PigForRetrieval]`): models by framework.
        processor (`PigProcessor`): processor of the models.
        galleries (`list[int]`): numbers of videos.
        measured_bytes (`int`): size of the largest gallery to measure. Times of larger galleries are extrapolated from
            the largest measured one, in proportion to the size, without the time of the text tower.
        rerank (`list[int]`): numbers of videos to re-rank.
        repeats (`int`, *optional*, defaults to 5): rounds after a warm-up; a time is their median.

    Returns:
        `dict`: `text_seconds`, the part of the text tower; and by search `parameters`, `bytes_per_video`,
        `offline_seconds_per_video` (without decoding) and `query_seconds`, a list of rows with `videos`, `seconds` and
        `measured`.
    """
    any_model = next(iter(models.values()))
    vision = any_model.config.vision_config
    embedding_dim = any_model.config.projection_dim
    inputs = processor(text=[QUERY], return_tensors="pt")

    def encode() -> torch.Tensor:
        return nn.functional.normalize(any_model.get_text_features(**inputs).pooler_output, dim=-1)

    query = encode()
    text_seconds = statistics.median(interleave({"text": encode}, 4 * repeats)[0]["text"])

    pixel_values_videos = torch.randn(16, vision.num_frames, 3, vision.image_size, vision.image_size)
    videos = {
        name: (lambda model=model: model.get_video_features(pixel_values_videos)) for name, model in models.items()
    }
    offline = {name: statistics.median(times) / 16 for name, times in interleave(videos, repeats)[0].items()}

    num_tokens = vision.num_context_tokens(vision.num_frames)
    interaction = models["single_tower"].interaction
    # search -> (framework of the model, stored numbers of a video that every query reads, further bytes, scores)
    searches: dict[str, tuple[str, int, int, Callable]] = {
        "two_tower": ("two_tower", embedding_dim, 0, lambda stored: query @ stored.t()),
        "4 vectors": (
            "hybrid",
            _NUM_VECTORS * embedding_dim,
            0,
            lambda stored: (stored.view(-1, embedding_dim) @ query[0]).view(-1, _NUM_VECTORS).amax(dim=1)[None],
        ),
        **{
            f"best {count} re-ranked": (
                "single_tower",
                embedding_dim,
                2 * num_tokens * embedding_dim,
                _reranking(interaction, query, num_tokens, count),
            )
            for count in rerank
        },
        "single_tower": (
            "single_tower",
            num_tokens * embedding_dim,
            0,
            lambda stored: _score(interaction, query, stored.unflatten(1, (num_tokens, -1))),
        ),
        _STORED: (
            "single_tower",
            2 * num_tokens * embedding_dim,
            0,
            lambda stored: _score_stored(interaction, query, stored.unflatten(1, (2, num_tokens, -1))),
        ),
    }
    costs = {
        name: {
            "parameters": models[framework].num_parameters(),
            "bytes_per_video": 4 * numbers + further,
            "offline_seconds_per_video": offline[framework],
            "query_seconds": _query_seconds(numbers, score, galleries, measured_bytes, text_seconds, repeats),
        }
        for name, (framework, numbers, further, score) in searches.items()
    }
    of_hybrid = {"parameters": models["hybrid"].num_parameters(), "offline_seconds_per_video": offline["hybrid"]}
    return {"text_seconds": text_seconds, "searches": {"hybrid": costs["two_tower"] | of_hybrid, **costs}}


def _reranking(interaction: nn.Module, query: torch.Tensor, num_tokens: int, count: int) -> Callable:
    """Return a function that scores stored embeddings, (N, D), and re-ranks the best `count` of them."""

    def score(stored: torch.Tensor) -> torch.Tensor:
        scores = query @ stored.t()  # (1, N)
        best = scores.topk(min(count, len(stored))).indices[0]
        # A thousand stored tokens stand for those of all videos: reading any takes the same time.
        return _score(interaction, query, tokens[best % len(tokens)].float())

    tokens = torch.randn(1000, num_tokens, query.shape[1]).half()
    return score


def _query_seconds(
    numbers: int, score: Callable, galleries: list[int], measured_bytes: int, text_seconds: float, repeats: int
) -> list[dict]:
    rows: list[dict] = []
    for size in sorted(galleries):
        if 4 * numbers * size > measured_bytes and rows:
            last = max((row for row in rows if row["measured"]), key=lambda row: row["videos"])
            seconds = text_seconds + (last["seconds"] - text_seconds) * size / last["videos"]
            rows.append({"videos": size, "seconds": seconds, "measured": False})
            continue
        stored = torch.randn(size, numbers)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            scores = score(stored)
            scores.topk(min(NUM_RESULTS, scores.shape[1]))
            times.append(time.perf_counter() - start)
        rows.append({"videos": size, "seconds": text_seconds + statistics.median(times[1:]), "measured": True})
    return rows


def _score(interaction: nn.Module, query: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return the scores, (1, N), of a query, (1, D), and videos with stored context tokens, (N, S, D)."""
    pooled = [interaction(query[None], block).squeeze(1) for block in stored.split(_BLOCK)]
    return query @ nn.functional.normalize(torch.cat(pooled), dim=-1).t()


def keys_and_values(interaction: nn.Module, context: torch.Tensor) -> torch.Tensor:
    """Return keys and values, (N, 2, S, D), of context tokens, (N, S, D): they do not depend on the query."""
    context = interaction.layer_norm1(context)
    return torch.stack([interaction.k_proj(context), interaction.v_proj(context)], dim=1)


def _score_stored(interaction: nn.Module, query: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return the scores of [`_score`], (1, N), of a query, (1, D), and stored keys and values, (N, 2, S, D)."""
    heads = (interaction.num_heads, -1)
    projected = interaction.q_proj(interaction.layer_norm1(query))  # (1, D)
    pooled = []
    for block in stored.split(_BLOCK):
        # (N, heads, S, D / heads) each
        key, value = (states.unflatten(-1, heads).transpose(1, 2) for states in block.unbind(1))
        expanded = projected[None].unflatten(-1, heads).transpose(1, 2).expand(len(block), -1, -1, -1)
        attended = nn.functional.scaled_dot_product_attention(expanded, key, value)  # (N, heads, 1, D / heads)
        attended = interaction.layer_norm2(interaction.out_proj(attended.transpose(1, 2).flatten(2)))
        pooled.append(interaction.layer_norm3(attended + interaction.linear_proj(attended)).squeeze(1))
    return query @ nn.functional.normalize(torch.cat(pooled), dim=-1).t()
