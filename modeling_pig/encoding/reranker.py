"""Score videos by their context tokens and a query, with the interaction of a model, without torch.

Importing torch and the model would take longer than a search. Equals `PigForRetrieval.similarity` to rounding.
"""

import math

import numpy as np

from .model_files import check_model_name, model_file, read_json, read_weights, weight_files


_EPSILON = np.float32(1e-5)  # of the layer norms, torch's default
_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear_proj", "layer_norm1", "layer_norm2", "layer_norm3")
_WEIGHTS = {f"interaction.{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")}


class Reranker:
    """Interaction of a `hybrid` or `single_tower` model, for re-ranking the results of a query.

    Args:
        name_or_folder (`str`): model on the Hub, or folder that `save_pretrained` wrote.

    Raises:
        ValueError: the model is `two_tower`, or cannot be loaded. The message is one line.
    """

    def __init__(self, name_or_folder: str):
        check_model_name(name_or_folder)
        try:
            if (config_file := model_file(name_or_folder, "config.json")) is None:
                raise ValueError("it has no config.json")
            config = read_json(config_file)
            if config.get("framework") == "two_tower":
                raise ValueError("it is a two_tower model, which has no interaction")
            self._num_heads = int(config.get("interaction_num_attention_heads", 1))
            self._weights: dict[str, np.ndarray] = {}
            for file in weight_files(name_or_folder):
                self._weights |= read_weights(file, ("interaction.",))
            if missing := _WEIGHTS - self._weights.keys():
                raise ValueError(f"it lacks the weights {', '.join(sorted(missing))}; save the model again")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The model {name_or_folder} cannot re-rank: {' '.join(str(error).split())}.") from error

    def __call__(self, query_embedding: np.ndarray, context_embeds: np.ndarray) -> np.ndarray:
        """Return the cosine of a query with each video, which is pooled for the query.

        Args:
            query_embedding (`np.ndarray` of shape `(D,)`): embedding of the query.
            context_embeds (`np.ndarray` of shape `(N, S, D)`): context tokens of the videos.

        Returns:
            `np.ndarray` of shape `(N,)`: float32.
        """
        query_embedding = (query_embedding / np.linalg.norm(query_embedding)).astype(np.float32)
        context = self._norm("layer_norm1", context_embeds.astype(np.float32))  # (N, S, D)
        flat = context.reshape(-1, context.shape[2])  # (N * S, D)
        heads = (self._num_heads, -1)
        query = self._linear("q_proj", self._norm("layer_norm1", query_embedding)).reshape(heads)
        # The projections of keys and values move to the query and to the pooled tokens: one vector instead of N * S. A
        # bias of the keys adds the same number to all scores of a head, which the softmax ignores.
        key_weight, value_weight = (
            self._weights[f"interaction.{name}.weight"].reshape(*heads, flat.shape[1]) for name in ("k_proj", "v_proj")
        )  # (heads, D / heads, D)
        query_for_tokens = np.einsum("hd,hde->he", query, key_weight) / np.float32(math.sqrt(query.shape[1]))
        scores = (flat @ query_for_tokens.T).reshape(*context.shape[:2], -1)  # (N, S, heads)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        tokens = weights.transpose(0, 2, 1) @ context  # (N, heads, D)
        values = np.concatenate([tokens[:, head] @ weight.T for head, weight in enumerate(value_weight)], axis=1)
        pooled = values + self._weights["interaction.v_proj.bias"]  # (N, D)
        pooled = self._norm("layer_norm2", self._linear("out_proj", pooled))
        pooled = self._norm("layer_norm3", pooled + self._linear("linear_proj", pooled))
        return pooled @ query_embedding / np.linalg.norm(pooled, axis=1)

    def _linear(self, name: str, states: np.ndarray) -> np.ndarray:
        return states @ self._weights[f"interaction.{name}.weight"].T + self._weights[f"interaction.{name}.bias"]

    def _norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + _EPSILON)
        weight, bias = (self._weights[f"interaction.{name}.{kind}"] for kind in ("weight", "bias"))
        return centred / deviation * weight + bias


__all__ = ["Reranker"]
