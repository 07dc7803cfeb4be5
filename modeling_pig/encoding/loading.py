"""Load a model and its processor from a folder or from the Hub."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import PreTrainedModel

from modeling_pig import PigConfig, PigProcessor

from .model_files import check_model_name


def load_pretrained(model_class: type[PreTrainedModel], name_or_folder: str) -> tuple[Any, PigProcessor]:
    """Load a model and its processor.

    Args:
        model_class (`type`): [`PigTextModel`], [`PigVideoModel`] or [`PigForRetrieval`].
        name_or_folder (`str`): model on the Hub, or folder that `save_pretrained` wrote.

    Returns:
        `tuple`: the model, an instance of `model_class` in evaluation mode, and its [`PigProcessor`].

    Raises:
        ValueError: the folder, the model in it, or its processor is missing or cannot be loaded. The message is one
            line.

    Example:

    ```python
    >>> from modeling_pig import PigForRetrieval
    >>> from modeling_pig.encoding.loading import load_pretrained

    >>> model, processor = load_pretrained(PigForRetrieval, "runs/demo/model")
    ```
    """
    check_model_name(name_or_folder)
    config_class: Any = model_class.config_class
    try:
        model_type = config_class.get_config_dict(name_or_folder)[0].get("model_type")
        # transformers would load a model of another type, with random values for the weights that it lacks.
        if model_type not in (PigConfig.model_type, config_class.model_type):
            raise ValueError(
                f"it is not a PIG model (model_type is {model_type!r}). Create a PIG model from CLIP's weights with "
                "`pig init`"
            )
        loaded: Any = model_class.from_pretrained(name_or_folder, output_loading_info=True)
        model, info = loaded
        if missing := info["missing_keys"]:
            raise ValueError(f"it lacks {len(missing)} of the weights, such as {min(missing)}. Save the model again")
    except (OSError, ValueError, StrictDataclassError, SafetensorError, httpx.HTTPError) as error:
        raise ValueError(f"The model {name_or_folder} cannot be loaded: {_one_line(error)}") from error
    try:
        processor = PigProcessor.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError) as error:
        raise ValueError(
            f"{name_or_folder} has a model but no processor that can be loaded ({_one_line(error)}): save one there "
            "with PigProcessor.save_pretrained."
        ) from error
    return model.eval(), processor


def describe_untrained(config: PigConfig, name: str) -> str:
    """Describe in one sentence that a model was not trained, and what to do; return `""` for a trained model."""
    if not config.untrained:
        return ""
    return (
        f"{name} has the weights of CLIP and was not trained on videos: expect results of CLIP on frames, or worse. "
        f"Train it: pig train --recipe RECIPE --output RUN model.init=pig model.checkpoint={name} model.overrides={{}}"
    )


def _one_line(error: Exception) -> str:
    """Join the first two lines of a message: the second line of transformers' messages says what to do."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


__all__ = ["describe_untrained", "load_pretrained"]
