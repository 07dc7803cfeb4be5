"""Export a saved model together with its code, so that it loads where this package is not installed.

In the exported folder, `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)` and the same call of `AutoConfig`,
`AutoProcessor`, `AutoVideoProcessor` and `AutoTokenizer` need transformers, and PyAV to read video files.
`SentenceTransformer(FOLDER, trust_remote_code=True)` encodes sentences and video files, except with `single_tower`
models, which have no embedding of a video alone.
"""

import json
import shutil
from pathlib import Path

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor

from ..files import write_text
from .repository import check_empty


# Files that sentence-transformers reads. It needs no code of ours: methods of the model return the embeddings.
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

# Patterns of the files that `save_pretrained` writes for model, processor and tokenizer, and of the files above.
MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"]
MODEL_FILES += ["model.safetensors.index.json", "processor_config.json", "preprocessor_config.json"]
MODEL_FILES += ["video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
MODEL_FILES += ["merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.json"]
MODEL_FILES += ["chat_template.jinja", *SENTENCE_TRANSFORMERS_FILES]


def export_remote_code(model_folder: str | Path, output: str | Path) -> None:
    """Write a model, its processor, their code and all other files of `model_folder` to `output`.

    Args:
        model_folder (`str` or `Path`): folder that `PigForRetrieval.save_pretrained` wrote, with its processor.
        output (`str` or `Path`): folder that is empty or does not exist, outside of `model_folder`.

    Raises:
        ValueError: `model_folder` holds no PIG model, or `output` cannot be used.
        OSError: files of the model or of its processor are missing.
    """
    source, target = Path(model_folder), Path(output)
    config_file = source / "config.json"
    if not config_file.is_file() or json.loads(config_file.read_text(encoding="utf-8")).get("model_type") != "pig":
        raise ValueError(f"{source} holds no PIG model: give a folder that PigForRetrieval.save_pretrained wrote.")
    if source.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies in the model's own folder: give an --output outside of it.")
    check_empty(target)

    PigConfig.register_for_auto_class()
    PigForRetrieval.register_for_auto_class("AutoModel")
    PigProcessor.register_for_auto_class("AutoProcessor")
    PigVideoProcessor.register_for_auto_class("AutoVideoProcessor")
    model = PigForRetrieval.from_pretrained(source)
    processor = PigProcessor.from_pretrained(source)

    # Other files first, such as a model card. Weights are left out: saving may split them into other files.
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    if model.config.framework != "single_tower":
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            write_text(target / name, json.dumps(content, indent=2) + "\n")


__all__ = ["MODEL_FILES", "SENTENCE_TRANSFORMERS_FILES", "export_remote_code"]
