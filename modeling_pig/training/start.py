"""Build the model and processor that a run starts from, freeze parts, and group parameters for the optimiser."""

import copy
import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CLIPConfig, CLIPModel

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor

from ..configuration_pig import load_clip_config
from ..encoding.loading import load_pretrained
from ..extras import pip_install
from .own_code import import_model_class
from .recipe import LoraRecipe, ModelRecipe, OptimizerRecipe
from .reference_checkpoint import convert_state_dict, is_clip_vip_checkpoint, read_checkpoint
from .tokenizer import train_tokenizer


# Parts of a model by the beginning of their weights' names; the first match counts.
PARTS = {
    "video_new": r"vision_model\.embeddings\.(global|frame|temporal)_embedding",  # missing in CLIP's tower
    "text": r"text_model\.|text_projection\.",
    "video": r"vision_model\.|visual_projection\.",
    "generator": r"generator\.",
    "interaction": r"interaction\.",
}
OWN_PARTS = ("video_new", "generator", "interaction")  # parts that PIG adds to CLIP


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to, by its name; `logit_scale` is a separate part."""
    return next((part for part, start in PARTS.items() if re.match(start, name)), name)


def build_model(recipe: ModelRecipe, captions: Any) -> tuple[PigForRetrieval, PigProcessor]:
    """Build the model, with its frozen parts, and the processor that a run starts from.

    Args:
        recipe (`ModelRecipe`): where the weights start, and which parts are frozen.
        captions (iterable of lists of `str`): captions of the training split, for the tokenizer of `init: scratch`.

    Raises:
        ValueError: the configuration is invalid, or a checkpoint cannot be read.
        OSError: the CLIP checkpoint does not exist.
    """
    model_class = import_model_class(recipe.class_, PigForRetrieval)
    if recipe.init == "clip":
        model = model_class.from_clip(recipe.clip, **recipe.overrides)
        processor = PigProcessor.from_clip(recipe.clip, model.config)
    elif recipe.init == "pig":
        if recipe.overrides:
            raise ValueError("model.init is pig, and the checkpoint determines the shape: remove model.overrides.")
        model, processor = load_pretrained(model_class, str(recipe.checkpoint))
    elif recipe.init in ("reference", "clip_vip"):
        checkpoint = read_checkpoint(str(recipe.checkpoint))
        overrides = recipe.overrides
        if recipe.init == "clip_vip":
            if not is_clip_vip_checkpoint(checkpoint):
                raise ValueError(
                    f"{recipe.checkpoint} is a checkpoint of PIG, expected one of CLIP-ViP: set model.init=reference."
                )
            overrides = {"framework": "hybrid", **overrides}
        config, state = convert_state_dict(checkpoint, load_clip_config(recipe.clip), **overrides)
        model = model_class.from_towers(config, state)
        processor = PigProcessor.from_clip(recipe.clip, config)
    else:
        model, processor = _from_scratch(recipe, captions, model_class)
    frozen = {part for part in PARTS if part not in OWN_PARTS} if "clip" in recipe.freeze else set()
    frozen |= set(recipe.freeze) | ({"video_new"} if "video" in recipe.freeze else set())
    for name, parameter in model.named_parameters():
        if part_of(name) in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"model.freeze is {', '.join(recipe.freeze)}, which leaves nothing to train: freeze fewer parts."
        )
    return model, processor


def save_as_clip(model: PigForRetrieval, processor: PigProcessor, folder: str | Path) -> None:
    """Write a model of single frames as a CLIP checkpoint in Hugging Face format, with its tokenizer.

    Other models can start from the checkpoint (`model.init: clip`). The embeddings are equal.

    Args:
        model (`PigForRetrieval`): a `two_tower` model of one frame, without global and frame tokens: plain CLIP.
        processor (`PigProcessor`): processor of the model.
        folder (`str` or `Path`): folder to write.

    Raises:
        ValueError: the model has parts that CLIP lacks.
    """
    config = model.config
    vision = config.vision_config
    shape = (config.framework, vision.num_frames, vision.num_global_tokens, vision.use_frame_tokens)
    if shape != ("two_tower", 1, 0, False):
        raise ValueError(
            f"The model is a {config.framework} of {vision.num_frames} frames with {vision.num_global_tokens} global "
            f"tokens and {'' if vision.use_frame_tokens else 'no '}frame tokens; expected a two_tower of 1 frame "
            "without either, like CLIP."
        )
    own_fields = ("model_type", "num_frames", "num_global_tokens", "use_frame_tokens")
    text_fields, vision_fields = (
        {name: value for name, value in part.to_dict().items() if name not in own_fields}
        for part in (config.text_config, vision)
    )
    clip = CLIPModel(
        CLIPConfig(text_config=text_fields, vision_config=vision_fields, projection_dim=config.projection_dim)
    )
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state.pop("vision_model.embeddings.global_embedding")
    # With one frame, the temporal embedding, (1, 1, C), is an addition to the position embeddings of the patches.
    temporal = state.pop("vision_model.embeddings.temporal_embedding")
    state["vision_model.embeddings.position_embedding.weight"][1:] += temporal[0]
    clip.load_state_dict(state)
    clip.save_pretrained(folder)
    processor.tokenizer.backend_tokenizer.no_truncation()
    processor.tokenizer.backend_tokenizer.no_padding()
    processor.tokenizer.save_pretrained(folder)


def _from_scratch(
    recipe: ModelRecipe, captions: Any, model_class: type[PigForRetrieval]
) -> tuple[PigForRetrieval, PigProcessor]:
    assert isinstance(recipe.config, dict)  # `Recipe.from_yaml` reads a file
    shape = {**recipe.config, **recipe.overrides}
    if missing := {"vocab_size", "max_position_embeddings"} - dict(shape.get("text_config") or {}).keys():
        raise ValueError(
            f"model.config lacks {' and '.join(sorted(missing))} in text_config: model.init=scratch needs them."
        )
    text_config = shape["text_config"]
    tokenizer = train_tokenizer(captions, text_config["vocab_size"], text_config["max_position_embeddings"])
    shape["text_config"] = text_config | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = model_class(PigConfig.from_fields(**shape))
    return model, PigProcessor(PigVideoProcessor.from_config(model.config.vision_config), tokenizer)


def add_lora(model: PigForRetrieval, recipe: LoraRecipe) -> Any:
    """Add low-rank adapters to the towers that are not frozen, in place; train them and PIG's own parts.

    Returns:
        peft's wrapper of the model, for [`merged`].

    Raises:
        ImportError: peft is not installed.
        ValueError: the model has none of the target modules, or all of them are frozen.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(f"model.lora needs peft: {pip_install('lora')}") from error
    own = {
        name for name, parameter in model.named_parameters() if part_of(name) in OWN_PARTS and parameter.requires_grad
    }
    targets = [
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if part_of(name) in ("text", "video")
        and parameter.requires_grad
        and name.endswith(tuple(f".{module}.weight" for module in recipe.target_modules))
    ]
    if not targets:
        raise ValueError(
            f"model.lora.target_modules is {recipe.target_modules}, and no trained tower has such modules: choose "
            "from q_proj, k_proj, v_proj, out_proj, fc1, fc2, and leave one tower out of model.freeze."
        )
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=targets)
    adapted = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if name in own:
            parameter.requires_grad_(True)
    return adapted


def merged(adapted: Any) -> PigForRetrieval:
    """Return a copy of the model with the adapters merged into its weights: a plain [`PigForRetrieval`]."""
    return copy.deepcopy(adapted).merge_and_unload()


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict]:
    """Group parameters for AdamW by learning rate and weight decay (none on biases, layer norms, logit_scale)."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_undecayed = id(parameter) in norms or name.endswith("bias") or name == "logit_scale"
        part = part_of(name).removesuffix("_new")
        # Parts that the recipe cannot name, like logit_scale, have the common rate.
        learning_rate = recipe.part_learning_rates.get(part, recipe.learning_rate)  # type: ignore[call-overload]
        weight_decay = 0.0 if is_undecayed else recipe.weight_decay
        group = {"params": [], "lr": learning_rate, "weight_decay": weight_decay}
        groups.setdefault((learning_rate, weight_decay), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[1] == 0, key[0]))]


__all__ = ["add_lora", "build_model", "merged", "parameter_groups", "part_of", "save_as_clip"]
