"""Encode queries with the text tower of a model in NumPy, for processes that only search.

Importing torch and transformers takes more time and memory than the rest of a search, which needs only the forward
pass of CLIP's text tower. [`PigTextModel`] is the reference implementation; tests compare both.
"""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np

from .model_files import check_model_name, model_file, read_json, read_weights, weight_files


logger = logging.getLogger(__name__)

# Shapes: Q queries, L tokens, W hidden size of the text tower, H attention heads, D embedding dimensions.


class TextEncoder:
    """The text tower of a model, with its tokenizer. Threads may share it.

    Args:
        name_or_folder (`str`): model on the Hub, or folder that `save_pretrained` wrote.

    Attributes:
        weights (`dict[str, np.ndarray]`): float32 weights, by their names in the checkpoint.
        embedding_dim (`int`): dimensions of an embedding, D.

    Raises:
        ValueError: the folder, the model in it, or its tokenizer is missing or cannot be read. The message is one
            line.

    Example:

    ```python
    >>> from modeling_pig.encoding.text_encoder import TextEncoder

    >>> encoder = TextEncoder("runs/demo/model")
    >>> query_embeddings = encoder(["a red circle moves left"])  # (1, D)
    ```
    """

    def __init__(self, name_or_folder: str):
        from tokenizers import Tokenizer

        check_model_name(name_or_folder)
        config, tokenizer = (model_file(name_or_folder, name) for name in ("config.json", "tokenizer.json"))
        settings = model_file(name_or_folder, "tokenizer_config.json")
        if config is None:
            raise ValueError(f"{name_or_folder} holds no model (no config.json): give another model.")
        if tokenizer is None or settings is None:
            raise ValueError(
                f"{name_or_folder} has a model but no processor that can be loaded (no tokenizer.json): save one "
                "there with PigProcessor.save_pretrained."
            )
        try:
            text_config = read_json(config)
            # Of early CLIP models (which counts if there are both), of PigForRetrieval and CLIP, or of PigTextModel.
            text_config = text_config.get("text_config_dict") or text_config.get("text_config") or text_config
            # Values that a configuration leaves out are those of CLIP ViT-B/32.
            self._num_heads = int(text_config.get("num_attention_heads", 8))
            self._epsilon = float(text_config.get("layer_norm_eps", 1e-5))
            self._eos_token_id = int(text_config.get("eos_token_id", 49407))
            self._activation = _ACTIVATIONS[text_config.get("hidden_act", "quick_gelu")]
            self._tokenizer = Tokenizer.from_file(tokenizer)
            self.weights: dict[str, np.ndarray] = {}
            for file in weight_files(name_or_folder):
                self.weights |= read_weights(file, ("text_model.", "text_projection."))
            longest, _ = self.weights["text_model.embeddings.position_embedding.weight"].shape
            self._max_tokens = min(int(read_json(settings).get("model_max_length", longest)), longest)
            self.embedding_dim = len(self.weights["text_projection.weight"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ValueError(f"The model {name_or_folder} cannot be loaded: {detail}") from error
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise ValueError(f"{tokenizer} is not a tokenizer that can be read: {error}") from error
        # A tokenizer that was saved after a call with truncation or padding has them in its file.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        last_token = self._tokenizer.encode("").ids[-1]
        if self._eos_token_id == 2:  # early CLIP checkpoints, such as those of OpenAI, name a wrong end token
            self._eos_token_id = last_token
        if self._eos_token_id != last_token:
            raise ValueError(
                f"{name_or_folder} holds the tokenizer of another model: it ends texts with token {last_token}, the "
                f"model with token {self._eos_token_id}. Save the model's own tokenizer there."
            )

    def __call__(self, queries: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Encode queries into normalised embeddings.

        Args:
            queries (`Sequence[str]`): Q sentences.
            batch_size (`int`): queries per forward pass.

        Returns:
            `np.ndarray` of shape `(Q, D)`: float32.

        Raises:
            ValueError: a query is empty or not valid Unicode.
        """
        check_sentences(queries)
        tokens = [self._tokenize(query) for query in queries]
        batches = [self._encode(tokens[start : start + batch_size]) for start in range(0, len(tokens), batch_size)]
        return np.concatenate([np.empty((0, self.embedding_dim), np.float32), *batches])

    def _tokenize(self, text: str) -> list[int]:
        tokens = self._tokenizer.encode(text).ids
        if len(tokens) <= self._max_tokens:
            return tokens
        cut = f"A text of {len(tokens)} tokens was cut to the first {self._max_tokens}"
        logger.warning(f"{cut}: {text[:60]!r}...")
        return [*tokens[: self._max_tokens - 1], tokens[-1]]  # the last one ends the text

    def _encode(self, tokens: list[list[int]]) -> np.ndarray:
        length = max(map(len, tokens))
        # Padding after the end of a text does not change the text: no token attends to a later token.
        padded = np.array([[*one, *[self._eos_token_id] * (length - len(one))] for one in tokens])  # (Q, L)
        ends = (padded == self._eos_token_id).argmax(axis=1)  # (Q,), position of the first end token
        states = self._weight("embeddings.token_embedding")[padded]  # (Q, L, W)
        states = states + self._weight("embeddings.position_embedding")[:length]
        later = np.triu(np.full((length, length), -np.inf, np.float32), k=1)  # (L, L)
        layer = 0
        while f"text_model.encoder.layers.{layer}.layer_norm1.weight" in self.weights:
            name = f"encoder.layers.{layer}"
            states = states + self._attend(f"{name}.self_attn", self._norm(f"{name}.layer_norm1", states), later)
            inner = self._activation(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.layer_norm2", states)))
            states = states + self._linear(f"{name}.mlp.fc2", inner)
            layer += 1
        pooled = self._norm("final_layer_norm", states[np.arange(len(tokens)), ends])  # (Q, W)
        embeddings = pooled @ self.weights["text_projection.weight"].T  # (Q, D)
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def _attend(self, name: str, states: np.ndarray, later: np.ndarray) -> np.ndarray:
        query, key, value = (
            self._linear(f"{name}.{letter}_proj", states)
            .reshape(*states.shape[:2], self._num_heads, -1)
            .transpose(0, 2, 1, 3)
            for letter in "qkv"
        )  # (Q, H, L, W / H)
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(query.shape[-1])) + later  # (Q, H, L, L)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (weights / weights.sum(axis=-1, keepdims=True)) @ value  # (Q, H, L, W / H)
        return self._linear(f"{name}.out_proj", attended.transpose(0, 2, 1, 3).reshape(states.shape))

    def _linear(self, name: str, states: np.ndarray) -> np.ndarray:
        flat = states.reshape(-1, states.shape[-1])  # one large product instead of one per query
        return (flat @ self._weight(name).T + self._weight(name, "bias")).reshape(*states.shape[:-1], -1)

    def _norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(self._epsilon))
        return centred / deviation * self._weight(name) + self._weight(name, "bias")

    def _weight(self, name: str, kind: str = "weight") -> np.ndarray:
        return self.weights[f"text_model.{name}.{kind}"]


def check_sentences(texts: Sequence[str]) -> None:
    """Raise `ValueError` if a text is empty or not valid Unicode, such as bytes of an encoding other than UTF-8."""
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise ValueError(f"Sentence {number} of {len(texts)} is empty: say what to look for.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"Sentence {number} of {len(texts)} is not valid UTF-8: {text[:60]!r}.") from error


def _quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(np.float32(-1.702) * x))


def _gelu(x: np.ndarray) -> np.ndarray:
    """Compute GELU. Its error function is accurate to 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical
    Functions, 7.1.26."""
    z = np.abs(x) / np.float32(math.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.polyval(np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0], x.dtype), t)
    return x * (1 + np.sign(x) * (1 - series * np.exp(-z * z))) / 2


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"quick_gelu": _quick_gelu, "gelu": _gelu}

__all__ = ["TextEncoder", "check_sentences"]
