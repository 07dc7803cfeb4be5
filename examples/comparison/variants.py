"""Variants of the comparison: the three frameworks, and the hybrid with one change at a time.

A variant overrides fields of `PigConfig`, or is a subclass of the model that replaces it in the training and
evaluation of its runs. No variant is part of the package.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from modeling_pig import PigForRetrieval
from modeling_pig.loss_pig import reconstruction_loss
from modeling_pig.modeling_pig import PigPatchSelector
from modeling_pig.training import loop, start


@dataclass(frozen=True)
class Variant:
    """Model to train.

    Attributes:
        name (`str`): name of the variant.
        fields (`dict[str, Any]`): fields of its configuration.
        model_class (`type[PigForRetrieval]`): class of the model.
        replaced_classes (`dict[str, type]`): substitutes of classes of the training loop, by the replaced name.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    model_class: type[PigForRetrieval] = PigForRetrieval
    replaced_classes: dict[str, type] = field(default_factory=dict)

    @contextmanager
    def patch_training(self) -> Iterator[None]:
        """Make the package's training use this variant's classes within the context."""
        with ExitStack() as patches:
            patches.enter_context(patch.object(start, "PigForRetrieval", self.model_class))
            for name, other in {"PigForRetrieval": self.model_class, **self.replaced_classes}.items():
                patches.enter_context(patch.object(loop, name, other))
            yield


class DetachedTarget(PigForRetrieval):
    """Let the reconstruction loss train the pseudo-query only, and not the real query."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.reconstruction_loss is not None:
            detached = reconstruction_loss(outputs.pseudo_query_embeds, outputs.text_embeds.detach())
            outputs.reconstruction_loss = detached
            outputs.loss = outputs.retrieval_loss + self.config.reconstruction_loss_weight * detached
        return outputs


class _RandomSelector(PigPatchSelector):
    def forward(self, hidden_states: torch.Tensor, class_attention: torch.Tensor, num_frames: int):
        if self.training:
            scores = torch.rand_like(class_attention)
        else:
            generator = torch.Generator().manual_seed(0)
            scores = torch.rand(class_attention.shape[2], generator=generator).expand_as(class_attention)
        return super().forward(hidden_states, scores.to(class_attention.device), num_frames)


class RandomPatches(PigForRetrieval):
    """Select random patches; in evaluation the same positions in every video."""

    def __init__(self, config):
        super().__init__(config)
        self.selector = _RandomSelector(config)


class _PseudoQueryAlone(nn.Module):
    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return queries


class _ClassTokenPlusPseudoQuery(nn.Module):
    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(queries, dim=-1) + nn.functional.normalize(context[:, :1], dim=-1)


class PseudoQueryAlone(PigForRetrieval):
    """Use the pseudo-query as the video's embedding, without interaction."""

    def __init__(self, config):
        super().__init__(config)
        self.interaction = _PseudoQueryAlone()


class ClassTokenPlusPseudoQuery(PigForRetrieval):
    """Use the sum of the normalised class token and pseudo-query as the video's embedding, without interaction."""

    def __init__(self, config):
        super().__init__(config)
        self.interaction = _ClassTokenPlusPseudoQuery()


class KeysWithPatches(PigForRetrieval):
    """Let the interaction also read the selected patches."""

    def get_video_features(self, *args, **kwargs):
        features = super().get_video_features(*args, **kwargs)
        tokens = self.visual_projection(self.vision_model.post_layernorm(features.last_hidden_state))  # (B, S + K, D)
        pooled = self.interaction(features.pseudo_query_embeds.unsqueeze(1), tokens)  # (B, 1, D)
        features.pooler_output = pooled.squeeze(1)
        return features


class ConstantQuery(PigForRetrieval):
    """Pool every video for one trained query. If this ranks as well as the hybrid, the pseudo-query is not used."""

    def __init__(self, config):
        super().__init__(config)
        self.constant_query = nn.Parameter(torch.randn(config.projection_dim) / config.projection_dim**0.5)

    def get_video_features(self, *args, **kwargs):
        features = super().get_video_features(*args, **kwargs)
        query = self.constant_query.expand(features.context_embeds.shape[0], 1, -1)  # (B, 1, D)
        features.pooler_output = self.interaction(query, features.context_embeds).squeeze(1)  # (B, D)
        return features


FRAMEWORKS = {name: Variant(name, {"framework": name}) for name in ("two_tower", "hybrid", "single_tower")}

ABLATIONS = {
    variant.name: variant
    for variant in (
        Variant("random_globals", {"global_token_init": "random"}),  # the start of the paper
        Variant("constant_query", model_class=ConstantQuery),
        Variant("no_reconstruction", {"reconstruction_loss_weight": 0.0}),
        Variant("detached_target", model_class=DetachedTarget),
        *(Variant(f"patches_{k}", {"num_selected_patches": k}) for k in (0, 4, 8, 32)),  # the paper selects 16
        Variant("mean_over_heads", {"selector_head_reduction": "mean"}),
        Variant("random_patches", model_class=RandomPatches),
        Variant("pseudo_query_alone", model_class=PseudoQueryAlone),
        Variant("class_token_plus_pseudo_query", model_class=ClassTokenPlusPseudoQuery),
        Variant("constant_ends", {"generator_learnable_ends": False}),
        Variant("generator_of_1_layer", {"generator_num_hidden_layers": 1}),
        Variant("keys_with_patches", model_class=KeysWithPatches),
    )
}
