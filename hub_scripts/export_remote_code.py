"""Copy a saved model and put its code beside it, so that it loads where this package is not installed.

python hub_scripts/export_remote_code.py --model runs/demo/model --output runs/demo/exported

`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`, and the same of `AutoConfig`, `AutoProcessor`,
`AutoVideoProcessor` and `AutoTokenizer`, then need transformers, and PyAV to read video files.
`SentenceTransformer(FOLDER, trust_remote_code=True)` encodes sentences and video files, except for a model that has no
embedding of a video alone (`single_tower`).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor


# What sentence-transformers reads. It has no use for code of ours: the embeddings come from the model by name.
SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.base.modules.normalize.Normalize",
        },
    ],
    "sentence_bert_config.json": {
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "video": {"method": "get_video_features", "method_output_name": "pooler_output"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}


def export_remote_code(model_folder: str, output: str) -> None:
    """Writes the model, its processor, their code and whatever else `model_folder` holds to `output`.

    Raises:
        ValueError: no PIG model in `model_folder`, or `output` is not a new or empty folder outside of it.
        OSError: files of the model or of its processor are missing.
    """
    source, target = Path(model_folder), Path(output)
    config_file = source / "config.json"
    if not config_file.is_file() or json.loads(config_file.read_text(encoding="utf-8")).get("model_type") != "pig":
        raise ValueError(f"{source} holds no PIG model: expected a folder that PigForRetrieval.save_pretrained wrote.")
    if source.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies in the model's own folder: give an --output outside of it.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder: empty it, or give another --output.")

    PigConfig.register_for_auto_class()
    PigForRetrieval.register_for_auto_class("AutoModel")
    PigProcessor.register_for_auto_class("AutoProcessor")
    PigVideoProcessor.register_for_auto_class("AutoVideoProcessor")
    model = PigForRetrieval.from_pretrained(source)
    processor = PigProcessor.from_pretrained(source)

    # First the model card and the like; weights may be split into other files than they were.
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    if model.config.framework != "single_tower":
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Copy a saved model and put its code beside it.")
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    args = parser.parse_args()
    try:
        export_remote_code(args.model, args.output)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"model with code: {args.output}")


if __name__ == "__main__":
    main()
