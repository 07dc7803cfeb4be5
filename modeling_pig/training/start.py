"""Where a run starts: the model and processor of a recipe, what of it is trained, and the optimiser's groups."""

import copy
import re
from typing import Any

from torch import nn
from transformers import CLIPConfig

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor

from ..retrieval.encode import load_pretrained
from .recipe import LoraRecipe, ModelRecipe, OptimizerRecipe
from .reference_checkpoint import convert_state_dict, read_checkpoint
from .tokenizer import train_tokenizer


# The parts of a model, by how the names of their weights start. The first that fits counts.
PARTS = {
    "video_new": r"vision_model\.embeddings\.(global|frame|temporal)_embedding",  # what CLIP's tower lacks
    "text": r"text_model\.|text_projection\.",
    "video": r"vision_model\.|visual_projection\.",
    "generator": r"generator\.",
    "interaction": r"interaction\.",
}
OWN_PARTS = ("video_new", "generator", "interaction")  # those that PIG adds to CLIP


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, by its name; `logit_scale` is a part of its own."""
    return next((part for part, start in PARTS.items() if re.match(start, name)), name)


def build_model(recipe: ModelRecipe, captions: Any) -> tuple[PigForRetrieval, PigProcessor]:
    """The model and the processor that a run starts from, with what is frozen frozen.

    Args:
        recipe (`ModelRecipe`): see its documentation.
        captions (iterable of lists of `str`): those of the training split, for the tokenizer of a start from scratch.

    Raises:
        ValueError: a configuration that cannot be, or a checkpoint that cannot be read.
        OSError: no such CLIP checkpoint.
    """
    if recipe.init == "clip":
        model = PigForRetrieval.from_clip(recipe.clip, **recipe.overrides)
        processor = PigProcessor.from_clip(recipe.clip, model.config)
    elif recipe.init == "pig":
        if recipe.overrides:
            raise ValueError("model.init is pig: its shape is that of the checkpoint, model.overrides must be empty.")
        model, processor = load_pretrained(PigForRetrieval, str(recipe.checkpoint))
    elif recipe.init == "reference":
        clip_config = CLIPConfig.from_pretrained(recipe.clip)
        config, state = convert_state_dict(read_checkpoint(str(recipe.checkpoint)), clip_config, **recipe.overrides)
        model = PigForRetrieval(config)
        model.load_state_dict(state)
        processor = PigProcessor.from_clip(recipe.clip, config)
    else:
        model, processor = _from_scratch(recipe, captions)
    frozen = {part for part in PARTS if part not in OWN_PARTS} if "clip" in recipe.freeze else set()
    frozen |= set(recipe.freeze) | ({"video_new"} if "video" in recipe.freeze else set())
    for name, parameter in model.named_parameters():
        if part_of(name) in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze leaves nothing to train: {', '.join(recipe.freeze)}.")
    return model, processor


def _from_scratch(recipe: ModelRecipe, captions: Any) -> tuple[PigForRetrieval, PigProcessor]:
    assert isinstance(recipe.config, dict)  # a file is read with the recipe
    shape = {**recipe.config, **recipe.overrides}
    text_config = shape["text_config"]
    tokenizer = train_tokenizer(captions, text_config["vocab_size"], text_config["max_position_embeddings"])
    shape["text_config"] = text_config | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = PigForRetrieval(PigConfig.from_fields(**shape))
    return model, PigProcessor(PigVideoProcessor.from_config(model.config.vision_config), tokenizer)


def add_lora(model: PigForRetrieval, recipe: LoraRecipe) -> Any:
    """Puts low-rank adapters into the model, in place; trained are they and PIG's own parts.

    Returns:
        peft's model around it, which `merged` takes.

    Raises:
        ImportError: peft is not installed.
        ValueError: modules to adapt that the model does not have.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("model.lora needs peft: pip install 'modeling-pig[lora]'.") from error
    own = {
        name for name, parameter in model.named_parameters() if part_of(name) in OWN_PARTS and parameter.requires_grad
    }
    towers = rf"(text_model|vision_model)\..*\.({'|'.join(map(re.escape, recipe.target_modules))})"
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=towers)
    adapted = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if name in own:
            parameter.requires_grad_(True)
    return adapted


def merged(adapted: Any) -> PigForRetrieval:
    """A copy of the model with its adapters added to its weights: a plain `PigForRetrieval`."""
    return copy.deepcopy(adapted).merge_and_unload()


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict]:
    """AdamW's groups: a part's weights at its learning rate, decayed or (biases, layer norms, logit_scale) not."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups: dict[tuple[float, float], dict] = {}  # those that are decayed come first
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = id(parameter) in norms or name.endswith("bias") or name == "logit_scale"
        part = part_of(name).removesuffix("_new")
        learning_rate = recipe.part_learning_rates.get(part, recipe.learning_rate)  # type: ignore[call-overload]
        weight_decay = 0.0 if is_plain else recipe.weight_decay
        group = {"params": [], "lr": learning_rate, "weight_decay": weight_decay}
        groups.setdefault((learning_rate, weight_decay), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[1] == 0, key[0]))]


__all__ = ["add_lora", "build_model", "merged", "parameter_groups", "part_of"]
