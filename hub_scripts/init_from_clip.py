"""Start a model from a CLIP checkpoint: a folder with model and processor, to train from.

python hub_scripts/init_from_clip.py --clip openai/clip-vit-base-patch32 --output runs/start num_selected_patches=8
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import CLIPConfig

from modeling_pig import PigForRetrieval, PigProcessor


def init_from_clip(clip: str, output: str | Path, **pig_config: Any) -> str:
    """Writes a model that starts from CLIP ([`PigForRetrieval.from_clip`]), and its processor.

    Args:
        clip (`str`): a CLIP checkpoint in Hugging Face format, a folder or its name on the Hub.
        output (`str` or `Path`): a folder that is empty or not there.
        pig_config: fields of [`PigConfig`], or of [`PigVisionConfig`] that CLIP lacks.

    Returns:
        `str`: what was written, in one line.

    Raises:
        ValueError: an unknown or impossible field; an output folder that is not empty; no CLIP checkpoint, or one
            without tokenizer. Nothing is written then.
        OSError: a CLIP checkpoint that is neither a folder nor on the Hub.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"The output {output} is not an empty folder: give another one, or remove it.")
    clip_fields, _ = CLIPConfig.get_config_dict(clip)
    if clip_fields.get("model_type") != "clip":
        raise ValueError(f"{clip} is no CLIP checkpoint: it has no config.json with model_type clip.")
    model = PigForRetrieval.from_clip(clip, **pig_config)
    processor = PigProcessor.from_clip(clip, model.config)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    vision = model.config.vision_config
    return (
        f"{model.config.framework}: {model.num_parameters():,} parameters, {vision.num_frames} frames of "
        f"{vision.image_size} pixels in patches of {vision.patch_size}, joint width {model.config.projection_dim}: "
        f"{output}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a model from a CLIP checkpoint.")
    parser.add_argument("--clip", required=True, help="a folder, or a name on the Hub")
    parser.add_argument("--output", required=True, help="a folder for the model and its processor")
    parser.add_argument("--num-frames", type=int, default=12, help="frames of a clip (12)")
    parser.add_argument("--framework", default="hybrid", choices=["hybrid", "two_tower", "single_tower"])
    parser.add_argument("fields", nargs="*", metavar="field=value", help="further fields of the configuration")
    args = parser.parse_intermixed_args()
    pig_config: dict[str, Any] = {"num_frames": args.num_frames, "framework": args.framework}
    try:
        for field in args.fields:
            name, equals, value = field.partition("=")
            if not equals:
                raise ValueError(f"A field is given as name=value, like num_selected_patches=8; got {field!r}.")
            pig_config[name] = yaml.safe_load(value)
        summary = init_from_clip(args.clip, args.output, **pig_config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(summary)


if __name__ == "__main__":
    main()
