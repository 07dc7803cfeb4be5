"""Load a model and its processor from a folder or the Hub, with errors in one line."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import PreTrainedModel

from modeling_pig import PigConfig, PigProcessor

from .model_files import check_model_name


def load_pretrained(model_class: type[PreTrainedModel], name_or_folder: str) -> tuple[Any, PigProcessor]:
    """A model's half and its processor: `(model in evaluation mode, PigProcessor)`.

    Args:
        model_class (`type`): [`PigTextModel`], [`PigVideoModel`] or [`PigForRetrieval`].
        name_or_folder (`str`): a model on the Hub, or a folder that `save_pretrained` wrote.

    Raises:
        ValueError: one line on what is missing: the folder, the model in it, or its processor.
    """
    check_model_name(name_or_folder)
    config_class: Any = model_class.config_class
    try:
        kind = config_class.get_config_dict(name_or_folder)[0].get("model_type")
        if kind not in (PigConfig.model_type, config_class.model_type):  # transformers would fill in random weights
            raise ValueError(
                f"it is no PIG model (model_type is {kind!r}). hub_scripts/init_from_clip.py makes one from CLIP's"
            )
        loaded: Any = model_class.from_pretrained(name_or_folder, output_loading_info=True)
        model, info = loaded
        if missing := info["missing_keys"]:
            raise ValueError(f"it lacks {len(missing)} of the weights, such as {min(missing)}")
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


def _one_line(error: Exception) -> str:
    """The first two lines of a message: transformers says in the second what to do."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


__all__ = ["load_pretrained"]
