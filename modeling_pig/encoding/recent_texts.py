"""Remember the embeddings of the latest sentences: pages, judgements and repeated searches encode the same ones."""

import threading
from collections.abc import Callable, Sequence

import numpy as np


NUM_REMEMBERED = 1000  # 2 MB with 512 dimensions


class RecentTexts:
    """Encode sentences, but not again if all of them are among the latest 1,000. Threads may share it.

    Args:
        encode (`Callable`): encodes Q sentences into embeddings, `(Q, D)` float32.
    """

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray]):
        self._encode = encode
        self._known: dict[str, np.ndarray] = {}  # oldest first
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of Q sentences, `(Q, D)`; raise what `encode` raises."""
        with self._lock:
            known = [self._known[text] for text in texts if text in self._known]
        if texts and len(known) == len(texts):
            return np.stack(known)
        embeddings = self._encode(texts)
        with self._lock:
            for text, embedding in list(zip(texts, embeddings, strict=True))[-NUM_REMEMBERED:]:
                self._known.pop(text, None)
                self._known[text] = embedding.copy()  # a view would keep its whole batch in memory
            while len(self._known) > NUM_REMEMBERED:
                del self._known[next(iter(self._known))]
        return embeddings


__all__ = ["NUM_REMEMBERED", "RecentTexts"]
