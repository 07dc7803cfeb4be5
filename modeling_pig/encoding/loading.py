"""Load a model and its processor from a folder or from the Hub."""

import os
from importlib.util import find_spec
from typing import Any

import psutil
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils.hub import extract_commit_hash

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoModel

from ..extras import pip_install
from .devices import DTypeName, choose_device, choose_dtype
from .encoder import Encoder, PigEncoder
from .model_files import (
    PIG_MODELS,
    all_weight_files,
    check_model_name,
    model_file,
    model_fingerprint,
    modules_file,
    read_config,
)


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


def load_encoder(
    name_or_folder: str,
    *,
    device: str = "auto",
    dtype: DTypeName = "auto",
    num_frames: int | None = None,
    trust_remote_code: bool = False,
    with_texts: bool = True,
    model_class: type[PigForRetrieval] = PigForRetrieval,
) -> Encoder:
    """Load a model that embeds videos and texts, of any supported kind.

    Kinds: PIG models; image-text models (mean of frames) and video-text models of `transformers`, see
    `transformers_encoders`; models of `sentence-transformers` that take video or images.

    Args:
        name_or_folder (`str`): model on the Hub, or folder of a model.
        device (`str`): device, see [`choose_device`].
        dtype (`str`): precision of the model, see [`choose_dtype`]. Embeddings are normalised in float32.
        num_frames (`int`, *optional*): frames per clip, by default those of the model, or 12 if it has no number of
            its own. Not for PIG models.
        trust_remote_code (`bool`): run code of the model's repository.
        with_texts (`bool`): also load the text tower; only a PIG model can do without.
        model_class (`type[PigForRetrieval]`): class of a PIG model.

    Raises:
        ValueError: the model does not exist, cannot be loaded, or is of another kind. The message is one line.

    Example:

    ```python
    >>> from modeling_pig.encoding.loading import load_encoder

    >>> encoder = load_encoder("openai/clip-vit-base-patch16")
    >>> query_embeddings = encoder.encode_texts(["a red circle moves left"])  # (1, D)
    ```
    """
    check_model_name(name_or_folder)
    chosen = choose_device(device)
    config = read_config(name_or_folder)
    encoder: Encoder
    if config.get("model_type") in PIG_MODELS:
        if num_frames is not None:
            raise ValueError(f"{name_or_folder} is a PIG model, which has a number of frames: leave out another one.")
        pig_class = model_class if with_texts else PigVideoModel
        encoder = PigEncoder(*load_pretrained(pig_class, name_or_folder), name_or_folder)
    else:
        encoder = _load_other(name_or_folder, config, num_frames, trust_remote_code)
    try:
        encoder.model.to(chosen, choose_dtype(dtype, chosen))
    except RuntimeError as error:
        raise ValueError(f"{name_or_folder} does not fit on {chosen}: {str(error).splitlines()[0]}") from error
    encoder.fingerprint = model_fingerprint(name_or_folder)
    encoder.revision = extract_commit_hash(model_file(name_or_folder, "config.json"), None)
    return encoder


def _load_other(name: str, config: dict[str, Any], num_frames: int | None, trust_remote_code: bool) -> Encoder:
    """Load a model that is not a PIG model."""
    model_type = config.get("model_type")
    try:
        _require_memory(name)
        if modules_file(name):
            if not find_spec("sentence_transformers"):
                raise ValueError(f"it needs {pip_install('sentence-transformers')}")
            from .sentence_transformers_encoder import SentenceTransformersEncoder

            return SentenceTransformersEncoder(name, num_frames, trust_remote_code)
        from .transformers_encoders import IMAGE_TEXT, VIDEO_TEXT, ImageTextEncoder, VideoTextEncoder

        has_own_code = "auto_map" in config and model_type not in (*IMAGE_TEXT, *VIDEO_TEXT)
        if has_own_code and not trust_remote_code:
            raise ValueError("it has code of its own. Read that code, then allow it with --trust-remote-code")
        if model_type in VIDEO_TEXT:
            return VideoTextEncoder(name, num_frames, trust_remote_code)
        if model_type in IMAGE_TEXT or has_own_code:
            return ImageTextEncoder(name, num_frames, trust_remote_code)
        raise ValueError(
            f"its kind is {model_type!r}. Expected pig, {', '.join((*IMAGE_TEXT, *VIDEO_TEXT))}, or a model of "
            "sentence-transformers that takes video or images"
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, httpx.HTTPError) as error:
        start = f"The model {name} cannot be loaded: "
        raise ValueError(f"{start}{_one_line(error).removeprefix(start).rstrip('.')}.") from error


def _require_memory(name: str) -> None:
    """Raise `ValueError` if the weights of a model are larger than the free memory."""
    try:
        needed = sum(map(os.path.getsize, all_weight_files(name)))
    except ValueError:  # loading reports what is missing
        return
    available = psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"it needs {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free. Close other programs, "
            "or use a smaller model"
        )


def describe_untrained(config: PigConfig, name: str) -> str:
    """Describe in one sentence that a model was not trained, and what to do; return `""` for a trained model."""
    if not config.untrained:
        return ""
    return (
        f"{name} has the weights that it started from and was not trained on videos: expect what those give on "
        "frames, or worse. "
        f"Train it: pig train --recipe RECIPE --output RUN model.init=pig model.checkpoint={name} model.overrides={{}}"
    )


def _one_line(error: Exception) -> str:
    """Join the first two lines of a message: the second line of transformers' messages says what to do."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


__all__ = ["describe_untrained", "load_encoder", "load_pretrained"]
