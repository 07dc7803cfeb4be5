"""PIG: text-to-video retrieval with pseudo-queries, as a Hugging Face-style model package.

Names are imported when first used, so that `import modeling_pig` costs nothing; the first of them also makes the
classes known to transformers' `Auto` classes.
"""

from importlib import import_module


__version__ = "0.1.0"

_EXPORTS = {
    "PigConfig": ".configuration_pig",
    "PigTextConfig": ".configuration_pig",
    "PigVisionConfig": ".configuration_pig",
    "PigForRetrieval": ".modeling_pig",
    "PigPreTrainedModel": ".modeling_pig",
    "PigTextModel": ".modeling_pig",
    "PigVideoModel": ".modeling_pig",
    "PigProcessor": ".processing_pig",
    "PigVideoProcessor": ".video_processing_pig",
    "VideoDecodingError": ".video_decoding_pig",
    "VideoIndex": ".retrieval.index",
    "VideoSearcher": ".retrieval.search",
    "load_benchmark": ".benchmarks",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("Pig"):
        _register_auto_classes()
    value = getattr(import_module(_EXPORTS[name], __name__), name)
    globals()[name] = value  # the next access is direct
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_auto_classes() -> None:
    """Makes `AutoConfig`, `AutoModel`, `AutoProcessor`, `AutoVideoProcessor` and `AutoTokenizer` know PIG."""
    from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, AutoVideoProcessor
    from transformers.models.clip import CLIPTokenizer

    from .configuration_pig import PigConfig, PigTextConfig
    from .modeling_pig import PigForRetrieval, PigTextModel
    from .processing_pig import PigProcessor
    from .video_processing_pig import PigVideoProcessor

    AutoConfig.register(PigConfig.model_type, PigConfig, exist_ok=True)
    AutoConfig.register(PigTextConfig.model_type, PigTextConfig, exist_ok=True)
    AutoModel.register(PigConfig, PigForRetrieval, exist_ok=True)
    AutoModel.register(PigTextConfig, PigTextModel, exist_ok=True)
    AutoProcessor.register(PigConfig, PigProcessor, exist_ok=True)
    AutoVideoProcessor.register(PigConfig, PigVideoProcessor, exist_ok=True)
    AutoTokenizer.register(PigConfig, tokenizer_class=CLIPTokenizer, exist_ok=True)
