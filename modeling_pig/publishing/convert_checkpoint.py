"""Convert a checkpoint of the authors' code, or of CLIP-ViP, to a folder that `from_pretrained` reads."""

from pathlib import Path
from typing import Any

import torch

from modeling_pig import PigForRetrieval, PigProcessor

from ..configuration_pig import load_clip_config
from ..training.reference_checkpoint import convert_state_dict, read_checkpoint
from .init_from_clip import describe_model
from .repository import check_empty


def convert_reference_checkpoint(checkpoint: str | Path, clip: str, output: str | Path, **pig_config: Any) -> str:
    """Write the model and the processor of a reference checkpoint, and check that they read back bit-identical.

    All sizes are read from the shapes in the checkpoint. Shapes do not hold the number of heads, the activation, the
    token ids and the tokenizer: these come from the CLIP checkpoint that the training started from.

    Args:
        checkpoint (`str` or `Path`): `.pt` file of the authors, `model_best.pt` or `restore.pt`.
        clip (`str`): CLIP checkpoint that the training started from: a folder, or its name on the Hub.
        output (`str` or `Path`): folder that is empty or does not exist.
        **pig_config: further settings, those of the paper by default, see [`convert_state_dict`].

    Returns:
        `str`: summary of the model in one line.

    Raises:
        ValueError: the checkpoint cannot be read or converted, see [`read_checkpoint`] and [`convert_state_dict`];
            `output` is not empty; or `clip` is not a CLIP checkpoint with a tokenizer. Nothing is written then.
        OSError: `clip` is neither a folder nor on the Hub.

    Example:

    ```python
    >>> convert_reference_checkpoint("model_best.pt", "openai/clip-vit-base-patch32", "runs/converted")
    ```
    """
    output = Path(output)
    check_empty(output)
    state_dict = read_checkpoint(checkpoint)
    config, state = convert_state_dict(state_dict, load_clip_config(clip), **pig_config)
    processor = PigProcessor.from_clip(clip, config)
    processor.video_processor.frame_sampling = "index"  # as the authors trained it

    model = PigForRetrieval.from_towers(config, state)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(output)
    processor.save_pretrained(output)
    _check_written(output, state, processor)
    return describe_model(model, output)


def _check_written(folder: Path, state: dict[str, torch.Tensor], processor: PigProcessor) -> None:
    """Read the folder back, and raise `ValueError` if a bit of the weights or an entry of the vocabulary differs."""
    written = PigForRetrieval.from_pretrained(folder).state_dict()
    different = [
        name
        for name in state.keys() | written.keys()
        if name not in state
        or name not in written
        or not torch.equal(written[name].view(torch.int32), state[name].view(torch.int32))
    ]
    if different:
        raise ValueError(
            f"The model written to {folder} does not read back the same: {', '.join(sorted(different))}. Check the "
            "disk, and convert again."
        )
    if PigProcessor.from_pretrained(folder).tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise ValueError(
            f"The tokenizer written to {folder} does not read back the same. Check the disk, and convert again."
        )


__all__ = ["convert_reference_checkpoint"]
