"""Load a model at its first use, safely from several threads. Importing this module imports no torch."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from .encoder import Encoder


# Shared by all models of the process. While one thread imports transformers, another thread that imports it too may
# see partly initialised modules, and fail. So one thread at a time imports transformers, while it holds this lock.
_IMPORT_LOCK = threading.Lock()


class LazyEncoder:
    """A model that is loaded at first use. Threads may share it: the model is loaded once.

    Import modules that import transformers (`encoding.videos`, `encoding.texts`) only after [`load`] has returned.

    Args:
        name_or_folder (`str`): model on the Hub, or folder of a model.
        **options: arguments of [`load_encoder`].
    """

    def __init__(self, name_or_folder: str, **options: Any):
        self.name_or_folder, self.options = name_or_folder, options
        self._loaded: Encoder | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._loaded is not None

    def load(self) -> "Encoder":
        """Return the model; load it if it is not loaded yet.

        Raises:
            ValueError: see [`load_encoder`].
        """
        with _IMPORT_LOCK:
            if self._loaded is None:
                from .loading import load_encoder

                self._loaded = load_encoder(self.name_or_folder, **self.options)
            return self._loaded

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Encode queries into normalised embeddings, `(Q, D)` float32."""
        return self.load().encode_texts(queries).numpy()


__all__ = ["LazyEncoder"]
