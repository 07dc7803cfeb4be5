"""Initialise a model from a CLIP checkpoint: a folder with model and processor, to train from."""

from pathlib import Path
from typing import Any

from modeling_pig import PigForRetrieval, PigProcessor

from ..encoding.loading import describe_untrained
from .repository import check_empty


def init_from_clip(clip: str, output: str | Path, **pig_config: Any) -> str:
    """Write a model that [`PigForRetrieval.from_clip`] initialises from CLIP or MetaCLIP 2, and its processor.

    Args:
        clip (`str`): CLIP or MetaCLIP 2 checkpoint in Hugging Face format: a folder, or its name on the Hub.
        output (`str` or `Path`): folder that is empty or does not exist.
        **pig_config: fields of [`PigConfig`], or fields of [`PigVisionConfig`] that CLIP lacks, such as `num_frames`.

    Returns:
        `str`: summary of the model in one line, and a line that says that the model is untrained.

    Raises:
        ValueError: a field is unknown or invalid, `output` is not empty, or `clip` is not a CLIP checkpoint with a
            tokenizer. Nothing is written then.
        OSError: `clip` is neither a folder nor on the Hub.

    Example:

    ```python
    >>> init_from_clip("openai/clip-vit-base-patch32", "runs/start", num_frames=12, num_selected_patches=8)
    ```
    """
    check_empty(Path(output))
    model = PigForRetrieval.from_clip(clip, **pig_config)
    processor = PigProcessor.from_clip(clip, model.config)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return f"{describe_model(model, output)}\n{describe_untrained(model.config, str(output))}"


def describe_model(model: PigForRetrieval, folder: str | Path) -> str:
    """Describe the framework and the sizes of a model in one line that ends with its folder."""
    config = model.config
    text, vision = config.text_config, config.vision_config
    return (
        f"{config.framework}: {model.num_parameters():,} parameters, text {text.num_hidden_layers} layers of "
        f"{text.hidden_size}, video {vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.num_frames} "
        f"frames of {vision.image_size} pixels in patches of {vision.patch_size}, embedding dimension "
        f"{config.projection_dim}: {folder}"
    )


__all__ = ["describe_model", "init_from_clip"]
