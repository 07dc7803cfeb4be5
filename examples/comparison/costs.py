"""What a query and a video cost in each framework: seconds, bytes, parameters."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measure import interleave
from torch import nn

from modeling_pig import PigForRetrieval, PigProcessor


SENTENCE = "a small red circle moves left and then grows while a blue star spins on a plain grey ground"
NUM_RESULTS = 10
_BLOCK = 2000  # videos that are pooled at a time
_STORED = "single_tower, keys and values stored"


@torch.inference_mode()
def measure_costs(
    models: dict[str, PigForRetrieval],
    processor: PigProcessor,
    galleries: list[int],
    measured_bytes: int,
    repeats: int = 5,
) -> dict[str, Any]:
    """Costs of models by framework, the ways to answer a query side by side in each round.

    A gallery is random numbers of the stored shape, in float32: what they are does not matter to the time. A query is
    its text through the text tower, the scores of all videos, and the best ten. `two_tower` and `hybrid` answer in
    the same way, one dot product a video, and are measured once. A `single_tower` pools each video's context tokens
    for the query; its keys and values do not depend on the query, so that it is also measured with these two stored
    instead of the tokens: twice the bytes.

    Args:
        models (`dict[str, PigForRetrieval]`): by framework.
        processor (`PigProcessor`): theirs.
        galleries (`list[int]`): numbers of videos.
        measured_bytes (`int`): a gallery that takes more is not measured, but extrapolated: the time of the largest
            that was, apart from the text's, times the ratio of the sizes.
        repeats (`int`): rounds after one to warm up; a time is the median.

    Returns:
        `dict`: by framework `parameters`, `bytes_per_video`, `offline_seconds_per_video` (without decoding) and
        `query_seconds`, a list with `videos`, `seconds` and `measured`; and `text_seconds`, a part of each.
    """
    any_model = next(iter(models.values()))
    vision = any_model.config.vision_config
    width = any_model.config.projection_dim
    inputs = processor(text=[SENTENCE], return_tensors="pt")

    def encode() -> torch.Tensor:
        return nn.functional.normalize(any_model.get_text_features(**inputs).pooler_output, dim=-1)

    query = encode()
    text_seconds = statistics.median(interleave({"text": encode}, 4 * repeats)[0]["text"])

    frames = torch.randn(16, vision.num_frames, 3, vision.image_size, vision.image_size)
    videos = {name: (lambda model=model: model.get_video_features(frames)) for name, model in models.items()}
    offline = {name: statistics.median(times) / 16 for name, times in interleave(videos, repeats)[0].items()}

    tokens = vision.num_context_tokens(vision.num_frames)
    interaction = models["single_tower"].interaction
    ways: dict[str, tuple[int, Callable]] = {
        "two_tower": (width, lambda stored: query @ stored.t()),
        "single_tower": (tokens * width, lambda stored: _pool(interaction, query, stored.unflatten(1, (tokens, -1)))),
        _STORED: (
            2 * tokens * width,
            lambda stored: _pool_stored(interaction, query, stored.unflatten(1, (2, tokens, -1))),
        ),
    }
    seconds = {
        name: _query_seconds(*way, galleries, measured_bytes, text_seconds, repeats) for name, way in ways.items()
    }
    of = {"two_tower": "two_tower", "hybrid": "two_tower", "single_tower": "single_tower", _STORED: _STORED}
    return {
        "text_seconds": text_seconds,
        "frameworks": {
            name: {
                "parameters": models[name.split(",")[0]].num_parameters(),
                "bytes_per_video": 4 * ways[way][0],
                "offline_seconds_per_video": offline[name.split(",")[0]],
                "query_seconds": seconds[way],
            }
            for name, way in of.items()
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


def _pool(interaction: nn.Module, query: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """(1, D) query, (N, S, D) context tokens -> (1, N) scores."""
    pooled = [interaction(query[None], block).squeeze(1) for block in stored.split(_BLOCK)]
    return query @ nn.functional.normalize(torch.cat(pooled), dim=-1).t()


def keys_and_values(interaction: nn.Module, context: torch.Tensor) -> torch.Tensor:
    """(N, S, D) context tokens -> (N, 2, S, D): the part of the interaction that no query changes."""
    context = interaction.layer_norm1(context)
    return torch.stack([interaction.k_proj(context), interaction.v_proj(context)], dim=1)


def _pool_stored(interaction: nn.Module, query: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """(1, D) query, (N, 2, S, D) keys and values -> (1, N): the scores of `_pool`."""
    heads = (interaction.num_heads, -1)
    asked = interaction.q_proj(interaction.layer_norm1(query))  # (1, D)
    pooled = []
    for block in stored.split(_BLOCK):
        key, value = (
            part.unflatten(-1, heads).transpose(1, 2) for part in block.unbind(1)
        )  # (N, heads, S, D / heads)
        asking = asked[None].unflatten(-1, heads).transpose(1, 2).expand(len(block), -1, -1, -1)
        found = nn.functional.scaled_dot_product_attention(asking, key, value)  # (N, heads, 1, D / heads)
        found = interaction.layer_norm2(interaction.out_proj(found.transpose(1, 2).flatten(2)))
        pooled.append(interaction.layer_norm3(found + interaction.linear_proj(found)).squeeze(1))
    return query @ nn.functional.normalize(torch.cat(pooled), dim=-1).t()
