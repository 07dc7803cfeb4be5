"""Load a model at its first use, safely from several threads. Importing this module imports no torch."""

import threading
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from modeling_pig import PigProcessor


# Shared by all models of the process. While one thread imports transformers, another thread that imports it too may
# see partly initialised modules, and fail. So one thread at a time imports transformers, while it holds this lock.
_IMPORT_LOCK = threading.Lock()


class LazyModel:
    """A model and its processor that are loaded at first use. Threads may share it: the model is loaded once.

    Import modules that import transformers (`encoding.videos`, `encoding.texts`) only after [`load`] has returned.

    Args:
        class_name (`str`): `"PigTextModel"`, `"PigVideoModel"` or `"PigForRetrieval"`.
        name_or_folder (`str`): model on the Hub, or folder that `save_pretrained` wrote.
    """

    def __init__(self, class_name: str, name_or_folder: str):
        self.class_name = class_name
        self.name_or_folder = name_or_folder
        self._loaded: tuple[Any, PigProcessor] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._loaded is not None

    def load(self) -> "tuple[Any, PigProcessor]":
        """Return the model in evaluation mode and its processor; load them if they are not loaded yet.

        Raises:
            ValueError: see [`load_pretrained`].
        """
        with _IMPORT_LOCK:
            if self._loaded is None:
                import modeling_pig

                from .loading import load_pretrained

                self._loaded = load_pretrained(getattr(modeling_pig, self.class_name), self.name_or_folder)
            return self._loaded


__all__ = ["LazyModel"]
