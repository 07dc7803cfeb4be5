"""PIG: text-to-video retrieval with pseudo-queries, as a Hugging Face-style model package.

Names are imported on first access, so that `import modeling_pig` loads no torch. The `transformers` auto classes know
PIG once one of its configuration classes is imported; at `import modeling_pig`, if transformers is imported already.
"""

import sys
from functools import cache
from importlib import import_module


__version__ = "0.1.0"

_EXPORTS = {
    "PigConfig": ".configuration_pig",
    "PigTextConfig": ".configuration_pig",
    "PigVisionConfig": ".configuration_pig",
    "PigClient": ".app.client",
    "PigDataCollator": ".training.data_collator",
    "PigForRetrieval": ".modeling_pig",
    "PigPreTrainedModel": ".modeling_pig",
    "PigTextModel": ".modeling_pig",
    "PigVideoModel": ".modeling_pig",
    "PigProcessor": ".processing_pig",
    "PigVideoProcessor": ".video_processing_pig",
    "VideoDecodingError": ".video_decoding_pig",
    "VideoIndex": ".stores.index",
    "VideoSearcher": ".retrieval.search",
    "load_benchmark": ".benchmarks",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name], __name__), name)
    globals()[name] = value  # later accesses do not come here
    if name.startswith("Pig") and name != "PigClient":  # which loads no transformers
        _register_auto_classes()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@cache
def _register_auto_classes() -> None:
    """Register PIG with the `transformers` auto classes."""
    from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, AutoVideoProcessor
    from transformers.models.clip import CLIPTokenizer

    from .configuration_pig import PigConfig, PigTextConfig
    from .modeling_pig import PigForRetrieval, PigTextModel
    from .processing_pig import PigProcessor
    from .video_processing_pig import PigVideoProcessor

    for config_class in (PigConfig, PigTextConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(PigConfig, PigForRetrieval, exist_ok=True)
    AutoModel.register(PigTextConfig, PigTextModel, exist_ok=True)
    AutoProcessor.register(PigConfig, PigProcessor, exist_ok=True)
    AutoTokenizer.register(PigConfig, tokenizer_class=CLIPTokenizer, exist_ok=True)
    AutoVideoProcessor.register(PigConfig, PigVideoProcessor, exist_ok=True)


if "transformers" in sys.modules:
    _register_auto_classes()
