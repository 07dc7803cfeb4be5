"""PIG: text-to-video retrieval with pseudo-queries, as a Hugging Face-style model package.

Names are imported when first used, so that `import modeling_pig` costs nothing. transformers' `Auto` classes come to
know PIG as soon as both are imported, in either order.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType


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
    value = getattr(import_module(_EXPORTS[name], __name__), name)
    globals()[name] = value  # the next access is direct
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_auto_classes() -> None:
    """Makes those of the five auto classes know PIG that are imported by now; once all are, the hook goes."""
    kinds = ("configuration", "modeling", "processing", "tokenization", "video_processing")
    imported = {kind: sys.modules.get(f"transformers.models.auto.{kind}_auto") for kind in kinds}
    if auto := imported["configuration"]:  # the other four import it
        from .configuration_pig import PigConfig, PigTextConfig

        auto.AutoConfig.register(PigConfig.model_type, PigConfig, exist_ok=True)
        auto.AutoConfig.register(PigTextConfig.model_type, PigTextConfig, exist_ok=True)
    if auto := imported["modeling"]:
        from .modeling_pig import PigForRetrieval, PigTextModel

        auto.AutoModel.register(PigConfig, PigForRetrieval, exist_ok=True)
        auto.AutoModel.register(PigTextConfig, PigTextModel, exist_ok=True)
    if auto := imported["processing"]:
        from .processing_pig import PigProcessor

        auto.AutoProcessor.register(PigConfig, PigProcessor, exist_ok=True)
    if auto := imported["tokenization"]:
        from transformers.models.clip import CLIPTokenizer

        auto.AutoTokenizer.register(PigConfig, tokenizer_class=CLIPTokenizer, exist_ok=True)
    if auto := imported["video_processing"]:
        from .video_processing_pig import PigVideoProcessor

        auto.AutoVideoProcessor.register(PigConfig, PigVideoProcessor, exist_ok=True)
    if all(imported.values()) and _ImportHook in sys.meta_path:
        sys.meta_path.remove(_ImportHook)


class _ImportHook:
    """Registers PIG whenever an import of transformers, or of this package, is complete with all that it imports.

    Not as soon as an auto class is there: transformers' modules and its auto classes import each other, and in the
    middle of that PIG's modules could not be imported.
    """

    @staticmethod
    def find_spec(fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname.split(".")[0] not in ("transformers", __name__):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    under_way: list[str] = []  # of all loaders

    def exec_module(self, module: ModuleType) -> None:
        self.under_way.append(self.name)
        try:
            super().exec_module(module)
        finally:
            self.under_way.remove(self.name)
        if not self.under_way:
            _register_auto_classes()


sys.meta_path.insert(0, _ImportHook)
_register_auto_classes()
