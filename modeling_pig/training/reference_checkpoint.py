"""Read the authors' checkpoints and convert them: rename the weights, and infer the configuration from shapes."""

import math
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, MetaClip2Config

from modeling_pig import PigConfig, PigForRetrieval


# Prefixes of the authors' names and ours, used in both directions; the first match counts.
NAMES = [
    ("encoder.clipmodel.vision_model.embeddings.added_cls", "vision_model.embeddings.global_embedding"),
    ("encoder.clipmodel.vision_model.embeddings.cls_in_frames", "vision_model.embeddings.frame_embedding"),
    ("generator.bos_tokens", "generator.bos_embedding"),
    ("generator.query_tokens", "generator.eos_embedding"),
    ("generator.clip_reconstructor.embeddings.position_embedding.", "generator.position_embedding."),
    ("generator.clip_reconstructor.embeddings.token_embedding.", "generator.token_embedding."),
    ("generator.clip_reconstructor.encoder.layers.", "generator.layers."),
    ("generator.clip_reconstructor.final_layer_norm.", "generator.final_layer_norm."),
    ("generator.clip_reconstructor.text_projection.", "generator.text_projection."),
    ("generator.clip_reconstructor.video_mapper.", "generator.input_projection."),
    ("fusioner.linear_proj.", "interaction.linear_proj."),
    ("fusioner.layer_norm", "interaction.layer_norm"),
    ("fusioner.cross_attn.", "interaction."),
    ("encoder.clipmodel.", ""),
]
FRAME_TOKEN, TEMPORAL = "vision_model.embeddings.frame_embedding", "vision_model.embeddings.temporal_embedding"
NEW_PARTS = ("generator.", "interaction.")  # missing in CLIP-ViP
# Ends of the generator's input: separate vectors in the authors' first release, rows of a token table in the second.
BOS, EOS, TOKEN_TABLE = "generator.bos_embedding", "generator.eos_embedding", "generator.token_embedding.weight"
LISTED_PROBLEMS = 10


def our_name(name: str) -> str:
    """Return the name in [`PigForRetrieval`] of a tensor of the authors' code."""
    return _replace_prefix(name, NAMES)


def reference_name(name: str) -> str:
    """Return the name in the authors' code of a tensor of [`PigForRetrieval`]: the inverse of [`our_name`]."""
    return _replace_prefix(name, ((ours, theirs) for theirs, ours in NAMES))


def _replace_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the state dict in `model_best.pt`, or nested in `restore.pt`, without running code of the file.

    Raises:
        ValueError: the file does not exist, is not a checkpoint, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise ValueError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is rejected: it is a pickle of more than tensors and plain values, which could run code, or no "
            "checkpoint. Give the authors' model_best.pt or restore.pt."
        ) from error
    except Exception as error:  # for other files, torch raises errors of any type
        raise ValueError(
            f"{path} is no checkpoint that torch can read ({type(error).__name__}): give model_best.pt or restore.pt."
        ) from error
    if isinstance(checkpoint, dict):
        checkpoint = checkpoint.get("model_state_dict", checkpoint)
    if not isinstance(checkpoint, dict) or not any(
        str(name).startswith(("encoder.clipmodel.", "clipmodel.")) for name in checkpoint
    ):
        seen = ", ".join(map(str, list(checkpoint)[:3])) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(
            f"{path} holds no weights of PIG or CLIP-ViP: expected names that start with encoder.clipmodel. or "
            f"clipmodel.; it holds {seen or 'nothing'}."
        )
    return checkpoint


def convert_state_dict(
    checkpoint: dict[str, torch.Tensor], clip_config: CLIPConfig | MetaClip2Config, **pig_config: Any
) -> tuple[PigConfig, dict[str, torch.Tensor]]:
    """Convert a reference checkpoint into the configuration and the float32 weights of a [`PigForRetrieval`].

    Args:
        checkpoint (`dict[str, torch.Tensor]`): state dict with the names of the authors' first or second release
            (with a generator: `hybrid`) or of CLIP-ViP (`two_tower`). It is not changed.
        clip_config (`CLIPConfig`): configuration of the CLIP checkpoint that the training started from.
        **pig_config: fields of [`PigConfig`] that do not follow from shapes, like `num_selected_patches`. With
            another `framework`, a checkpoint of both towers lacks the weights that [`PigForRetrieval.from_towers`]
            adds. Its temporal embedding is interpolated to another `num_frames`, as CLIP-ViP does.

    Raises:
        ValueError: sizes differ from CLIP's, weights are missing, surplus or have another shape (the message names
            them), or the configuration is invalid, see [`PigConfig`].
    """
    is_clip_vip = is_clip_vip_checkpoint(checkpoint)
    theirs = {
        f"encoder.{name}" if is_clip_vip else name: tensor
        for name, tensor in checkpoint.items()
        if not name.endswith(".position_ids")
    }
    foreign = [name for name in theirs if reference_name(our_name(name)) != name]
    state = {our_name(name): tensor for name, tensor in theirs.items() if name not in foreign}

    shared, new = _infer_sizes(state)
    _check_against_clip(shared, clip_config)
    fields = {name: value for name, value in new.items() if value is not None} | pig_config
    holds_towers = not any(name.startswith(NEW_PARTS) for name in state)
    if holds_towers and fields.setdefault("framework", "two_tower") == "two_tower" and is_clip_vip:
        fields.setdefault("use_frame_tokens", FRAME_TOKEN in state)  # the first version of CLIP-ViP has none
    ends_are_rows = TOKEN_TABLE in state and BOS not in state and EOS not in state
    if ends_are_rows:
        fields |= {"generator_learnable_ends": False, "generator_use_projection": False}
    config = PigConfig.from_clip_config(clip_config, **fields)

    if ends_are_rows:
        _take_ends_from_token_table(state, config)
    if not config.generator_use_bos:
        state.pop(BOS, None)  # the checkpoint always has the vector
    with torch.device("meta"):
        expected = PigForRetrieval(config).state_dict()
    if holds_towers:
        added = (*NEW_PARTS, *([FRAME_TOKEN] if is_clip_vip and FRAME_TOKEN not in state else []))
        expected = {name: value for name, value in expected.items() if not name.startswith(added)}
        temporal, num_frames = state.get(TEMPORAL), config.vision_config.num_frames
        if temporal is not None and temporal.ndim == 3 and temporal.shape[1] != num_frames:  # (1, T, C)
            per_channel = temporal.float().transpose(1, 2)  # (1, C, T)
            resized = torch.nn.functional.interpolate(per_channel, size=num_frames, mode="linear")
            state[TEMPORAL] = resized.transpose(1, 2)
    problems = _list_problems(state, expected, foreign)
    if problems:
        if is_clip_vip:
            problems = [problem.replace("encoder.clipmodel.", "clipmodel.") for problem in problems]
        listed = "; ".join(problems[:LISTED_PROBLEMS])
        more = f"; and {len(problems) - LISTED_PROBLEMS} more" if len(problems) > LISTED_PROBLEMS else ""
        raise ValueError(f"The checkpoint does not have the expected weights: {listed}{more}.")
    return config, {name: state[name].float() for name in expected}


def is_clip_vip_checkpoint(checkpoint: dict[str, torch.Tensor]) -> bool:
    """Return whether the names of a checkpoint are those of CLIP-ViP."""
    return any(name.startswith("clipmodel.") for name in checkpoint)


def _infer_sizes(state: dict[str, torch.Tensor]) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Infer sizes of the architecture from shapes; `None` if the tensor is missing.

    Returns:
        `tuple`: sizes that CLIP's configuration has as well, by their path in it, and fields that only PIG has.
    """

    def size(name: str, dimension: int) -> int | None:
        tensor = state.get(name)
        return tensor.shape[dimension] if tensor is not None and dimension < tensor.ndim else None

    def depth(start: str) -> int | None:
        matches = (re.match(re.escape(start) + r"(\d+)\.", name) for name in state)
        return max((int(match[1]) + 1 for match in matches if match), default=None)

    patch_size = size("vision_model.embeddings.patch_embedding.weight", 3)
    positions = size("vision_model.embeddings.position_embedding.weight", 0)
    shared = {
        "projection_dim": size("visual_projection.weight", 0),
        "text_config.vocab_size": size("text_model.embeddings.token_embedding.weight", 0),
        "text_config.hidden_size": size("text_model.embeddings.token_embedding.weight", 1),
        "text_config.max_position_embeddings": size("text_model.embeddings.position_embedding.weight", 0),
        "text_config.intermediate_size": size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "text_config.num_hidden_layers": depth("text_model.encoder.layers."),
        "vision_config.hidden_size": size("vision_model.embeddings.patch_embedding.weight", 0),
        "vision_config.num_channels": size("vision_model.embeddings.patch_embedding.weight", 1),
        "vision_config.intermediate_size": size("vision_model.encoder.layers.0.mlp.fc1.weight", 0),
        "vision_config.num_hidden_layers": depth("vision_model.encoder.layers."),
        "vision_config.patch_size": patch_size,
        "vision_config.image_size": patch_size * math.isqrt(positions - 1) if patch_size and positions else None,
    }
    new = {
        "num_frames": size("vision_model.embeddings.temporal_embedding", 1),
        "num_global_tokens": size("vision_model.embeddings.global_embedding", 0),
        "generator_num_hidden_layers": depth("generator.layers."),
        "generator_max_position_embeddings": size("generator.position_embedding.weight", 0),
    }
    return shared, new


def _check_against_clip(sizes: dict[str, int | None], clip_config: CLIPConfig | MetaClip2Config) -> None:
    contradictions = []
    for path, seen in sizes.items():
        section, _, name = path.rpartition(".")
        expected = getattr(getattr(clip_config, section) if section else clip_config, name)
        if seen is not None and seen != expected:
            contradictions.append(f"{path} is {seen} in the checkpoint and {expected} in CLIP")
    if contradictions:
        raise ValueError(
            f"This is not the CLIP that the checkpoint started from: {'; '.join(contradictions)}. Give the CLIP "
            "checkpoint that the training started from."
        )


def _take_ends_from_token_table(state: dict[str, torch.Tensor], config: PigConfig) -> None:
    table, text = state.pop(TOKEN_TABLE), config.text_config
    expected = (text.vocab_size, text.hidden_size)
    if table.shape != expected:
        raise ValueError(f"{reference_name(TOKEN_TABLE)} has shape {tuple(table.shape)} instead of {expected}.")
    state[BOS], state[EOS] = table[text.bos_token_id], table[text.eos_token_id]


def _list_problems(
    state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], foreign: Iterable[str]
) -> list[str]:
    """List missing, surplus and misshaped weights of `state`, by their names in the authors' code."""
    problems = [f"missing {reference_name(name)}" for name in expected if name not in state]
    problems += [f"surplus {reference_name(name)}" for name in state if name not in expected]
    problems += [f"surplus {name}" for name in foreign]
    problems += [
        f"{reference_name(name)} has shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    return problems


__all__ = ["convert_state_dict", "is_clip_vip_checkpoint", "our_name", "read_checkpoint", "reference_name"]
