"""Models of the comparison: the three frameworks, controls, and variants of the hybrid.

A variant overrides fields of `PigConfig`, or is a subclass of the model that replaces it in the training and
evaluation of its runs. Subclasses are not part of the package.

Shapes: B videos, Q captions, n vectors per video, S context tokens, D `projection_dim`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.func import functional_call

from modeling_pig import PigForRetrieval
from modeling_pig.loss_pig import reconstruction_loss
from modeling_pig.training import loop, start


@dataclass(frozen=True)
class Variant:
    """Model to train.

    Attributes:
        name (`str`): name of the variant.
        framework (`str`): framework whose learning rate the variant uses.
        fields (`dict[str, Any]`): further fields of its configuration.
        model_class (`type[PigForRetrieval]`): class of the model.
    """

    name: str
    framework: str
    fields: dict[str, Any] = field(default_factory=dict)
    model_class: type[PigForRetrieval] = PigForRetrieval

    @property
    def can_rerank(self) -> bool:
        """Whether its interaction can re-rank: it then has one vector per video and an interaction."""
        return self.framework != "two_tower" and self.model_class is not FourPseudoQueries

    @contextmanager
    def patch_training(self) -> Iterator[None]:
        """Make the package's training use this variant's class within the context."""
        with (
            patch.object(start, "PigForRetrieval", self.model_class),
            patch.object(loop, "PigForRetrieval", self.model_class),
        ):
            yield


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


class DetachedTarget(PigForRetrieval):
    """Let the reconstruction loss train the pseudo-query only, and not the real query."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.reconstruction_loss is not None:
            detached = reconstruction_loss(outputs.pseudo_query_embeds, outputs.text_embeds.detach())
            outputs.reconstruction_loss = detached
            outputs.loss = outputs.retrieval_loss + self.config.reconstruction_loss_weight * detached
        return outputs


class ClassTokenQuery(PigForRetrieval):
    """Add the class token to the pseudo-query, both of length 1, the latter times a trained gate that starts at 0.1.

    Before training the query of the interaction is then nearly the class token, the embedding of the two-tower.
    """

    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Parameter(torch.tensor(0.1))

    def get_video_features(self, *args, **kwargs):
        features = super().get_video_features(*args, **kwargs)
        class_token = nn.functional.normalize(features.context_embeds[:, 0], dim=-1)  # (B, D)
        query = class_token + self.gate * nn.functional.normalize(features.pseudo_query_embeds, dim=-1)
        features.pseudo_query_embeds = query
        features.pooler_output = self.interaction(query.unsqueeze(1), features.context_embeds).squeeze(1)
        return features


class _BestOfVectors(PigForRetrieval):
    """Store n vectors per video; the score is the best of their cosines."""

    def similarity(self, text_embeds: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
        text_embeds = nn.functional.normalize(text_embeds, dim=-1)
        video_embeds = nn.functional.normalize(video_embeds, dim=-1)  # (B, n, D)
        return torch.einsum("qd,bnd->qbn", text_embeds, video_embeds).amax(dim=-1)


class FourVectors(_BestOfVectors):
    """Store the class token and three global tokens: a two-tower of four times the storage."""

    def get_video_features(self, *args, **kwargs):
        features = super().get_video_features(*args, **kwargs)
        features.pooler_output = features.context_embeds[:, :4]
        return features


class FourPseudoQueries(_BestOfVectors):
    """Generate four pseudo-queries per video, one from each of four end tokens, and store what is pooled for each.

    The reconstruction loss compares a caption with the nearest of them (multiple choice).
    """

    num_queries = 4

    def __init__(self, config):
        super().__init__(config)
        self.more_ends = nn.Parameter(torch.zeros(self.num_queries - 1, config.text_config.hidden_size))

    @classmethod
    def from_clip(cls, *args, **kwargs):
        model = super().from_clip(*args, **kwargs)
        with torch.no_grad():  # near the first end token, but distinct: equal tokens would stay equal
            end = model.generator.eos_embedding
            model.more_ends.copy_(end + end.std() * torch.randn_like(model.more_ends))
        return model

    def get_video_features(self, *args, **kwargs):
        features = super().get_video_features(*args, **kwargs)
        tokens = self.visual_projection(self.vision_model.post_layernorm(features.last_hidden_state))  # (B, S + K, D)
        others = [functional_call(self.generator, {"eos_embedding": end}, (tokens,)) for end in self.more_ends]
        features.pseudo_query_embeds = torch.stack([features.pseudo_query_embeds, *others], dim=1)  # (B, n, D)
        features.pooler_output = self.interaction(features.pseudo_query_embeds, features.context_embeds)  # (B, n, D)
        return features

    def forward(self, input_ids, pixel_values_videos, attention_mask=None, **kwargs):
        features = self.get_video_features(pixel_values_videos)
        texts = self.get_text_features(input_ids, attention_mask)
        text_embeds = nn.functional.normalize(texts.pooler_output, dim=-1)  # (B, D)
        pseudo_queries = nn.functional.normalize(features.pseudo_query_embeds, dim=-1)  # (B, n, D)
        nearest = torch.einsum("bd,bnd->bn", text_embeds, pseudo_queries).argmax(dim=1)
        return super().forward(
            text_embeds=text_embeds,
            video_embeds=nn.functional.normalize(features.pooler_output, dim=-1),
            pseudo_query_embeds=pseudo_queries[torch.arange(len(nearest)), nearest],
            **kwargs,
        )


FRAMEWORKS = {name: Variant(name, name, {"framework": name}) for name in ("two_tower", "single_tower", "hybrid")}

# What the comparison shows beside the frameworks.
CONTROLS = {
    variant.name: variant
    for variant in (
        Variant("hybrid_of_the_paper", "hybrid", {"global_token_init": "random"}),
        Variant("constant_query", "hybrid", model_class=ConstantQuery),
        Variant("detached_target", "hybrid", model_class=DetachedTarget),
        Variant("two_tower_of_4_vectors", "two_tower", {"framework": "two_tower"}, FourVectors),
    )
}

# Ways to make the mechanism work.
MECHANISMS = {
    variant.name: variant
    for variant in (
        Variant("hybrid_that_reranks", "hybrid", {"reranking_loss_weight": 1.0}),
        Variant("class_token_query", "hybrid", {"reranking_loss_weight": 1.0}, ClassTokenQuery),
        Variant("four_pseudo_queries", "hybrid", model_class=FourPseudoQueries),
    )
}
