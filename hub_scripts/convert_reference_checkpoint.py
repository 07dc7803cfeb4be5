"""Convert a checkpoint of the authors' code, or of CLIP-ViP, to a folder that `from_pretrained` reads.

python hub_scripts/convert_reference_checkpoint.py --checkpoint model_best.pt --clip openai/clip-vit-base-patch32 \
    --output pig-vit-base-patch32

Every size is read off the checkpoint's shapes; what shapes do not tell (heads, activation, token ids, tokenizer) comes
from the CLIP checkpoint that the training started from. The rest are options, with the paper's settings as defaults.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig

from modeling_pig import PigForRetrieval, PigProcessor
from modeling_pig.training.reference_checkpoint import convert_state_dict, read_checkpoint


def convert(checkpoint: str | Path, clip: str, output: str | Path, **pig_config: Any) -> str:
    """Writes the model and the processor that equal a reference checkpoint, and proves that they can be read back.

    Args:
        checkpoint (`str` or `Path`): the `.pt` file.
        clip (`str`): the CLIP checkpoint that it started from, a folder or its name on the Hub.
        output (`str` or `Path`): a folder that is empty or not there.
        pig_config: as for `convert_state_dict`.

    Returns:
        `str`: what was written, in one line.

    Raises:
        ValueError: as `read_checkpoint` and `convert_state_dict`; an output folder that is not empty; a CLIP
            checkpoint without configuration or tokenizer. Nothing is written then.
        OSError: a CLIP checkpoint that is neither a folder nor on the Hub.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"The output {output} is not an empty folder: give another one, or remove it.")
    state_dict = read_checkpoint(checkpoint)
    if CLIPConfig.get_config_dict(clip)[0].get("model_type") != "clip":
        raise ValueError(f"{clip} is no CLIP checkpoint: it has no config.json with model_type clip.")
    config, state = convert_state_dict(state_dict, CLIPConfig.from_pretrained(clip), **pig_config)

    text, vision = config.text_config, config.vision_config
    processor = PigProcessor.from_clip(clip, config)

    model = PigForRetrieval(config)
    model.load_state_dict(state)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    _check_written(output, state, processor)
    return (
        f"{config.framework}: {model.num_parameters():,} parameters, text {text.num_hidden_layers} layers of "
        f"{text.hidden_size}, video {vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.num_frames} "
        f"frames of {vision.image_size} pixels in patches of {vision.patch_size}, joint width "
        f"{config.projection_dim}: {output}"
    )


def _check_written(folder: Path, state: dict[str, torch.Tensor], processor: PigProcessor) -> None:
    """Reads the folder back: every weight must be there to the last bit, and the same tokenizer."""
    seen = PigForRetrieval.from_pretrained(folder).state_dict()
    different = [
        name
        for name in state.keys() | seen.keys()
        if name not in state
        or name not in seen
        or not torch.equal(seen[name].view(torch.int32), state[name].view(torch.int32))
    ]
    if different:
        raise ValueError(f"What was written to {folder} does not read back the same: {', '.join(sorted(different))}.")
    if PigProcessor.from_pretrained(folder).tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise ValueError(f"The tokenizer written to {folder} does not read back the same.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a checkpoint of the authors' code, or of CLIP-ViP.")
    parser.add_argument("--checkpoint", required=True, help="model_best.pt or restore.pt")
    parser.add_argument("--clip", required=True, help="the CLIP that it started from: a folder, or a name on the Hub")
    parser.add_argument("--output", required=True, help="a folder for the model and its processor")
    parser.add_argument("--num-selected-patches", type=int, default=16, help="patches that the selector keeps (16)")
    parser.add_argument("--head-reduction", default="max", choices=["max", "mean"], help="the selector's (max)")
    parser.add_argument("--no-bos", action="store_true", help="the generator was trained without its bos vector")
    args = parser.parse_args()
    try:
        summary = convert(
            args.checkpoint,
            args.clip,
            args.output,
            num_selected_patches=args.num_selected_patches,
            selector_head_reduction=args.head_reduction,
            generator_use_bos=not args.no_bos,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(summary)


if __name__ == "__main__":
    main()
