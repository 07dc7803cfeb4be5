"""Measure the costs of each framework: seconds per query, bytes per video, parameters."""

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


@torch.inference_mode()
def measure_costs(
    models: dict[str, PigForRetrieval],
    processor: PigProcessor,
    galleries: list[int],
    measured_bytes: int,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure the costs of models by framework, with interleaved rounds.

    A gallery consists of random float32 numbers of the stored shape: their values do not affect the time. Answering a
    query takes the text tower, the scores of all videos, and the top ten. `two_tower` and `hybrid` search alike, with
    one dot product per video, and are measured once. A `single_tower` pools the context tokens of each video for the
    query. Its keys and values do not depend on the query, so that it is also measured with stored keys and values
    instead of the tokens: twice the bytes.

    Args:
        models (`dict[str, PigForRetrieval]`): models by framework.
        processor (`PigProcessor`): processor of the models.
        galleries (`list[int]`): numbers of videos.
        measured_bytes (`int`): size of the largest gallery to measure. Times of larger galleries are extrapolated from
            the largest measured one, in proportion to the size, without the time of the text tower.
        repeats (`int`, *optional*, defaults to 5): rounds after a warm-up; a time is their median.

    Returns:
        `dict`: `text_seconds`, the part of the text tower; and by framework `parameters`, `bytes_per_video`,
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

    tokens = vision.num_context_tokens(vision.num_frames)
    interaction = models["single_tower"].interaction
    ways: dict[str, tuple[int, Callable]] = {
        "two_tower": (embedding_dim, lambda stored: query @ stored.t()),
        "single_tower": (
            tokens * embedding_dim,
            lambda stored: _score(interaction, query, stored.unflatten(1, (tokens, -1))),
        ),
        _STORED: (
            2 * tokens * embedding_dim,
            lambda stored: _score_stored(interaction, query, stored.unflatten(1, (2, tokens, -1))),
        ),
    }
    seconds = {
        name: _query_seconds(*way, galleries, measured_bytes, text_seconds, repeats) for name, way in ways.items()
    }
    way_of = {"two_tower": "two_tower", "hybrid": "two_tower", "single_tower": "single_tower", _STORED: _STORED}
    return {
        "text_seconds": text_seconds,
        "frameworks": {
            name: {
                "parameters": models[name.split(",")[0]].num_parameters(),
                "bytes_per_video": 4 * ways[way][0],
                "offline_seconds_per_video": offline[name.split(",")[0]],
                "query_seconds": seconds[way],
            }
            for name, way in way_of.items()
        },
    }


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
            score(stored).topk(min(NUM_RESULTS, size))
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
