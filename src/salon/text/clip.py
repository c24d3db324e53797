"""Text (and image) towers from open_clip: small ones of our own sizes, and pretrained ones.

CLIP: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".

N captions or images, L tokens, D the text transformer's width, E the width of the joint space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from salon.text.tokens import TokenTower
from salon.types import Text


class ClipTower(TokenTower):
    """Both towers of an open_clip CLIP behind the contract of `TextTower`.

    `tokens` are the text transformer's last hidden states after its final norm, as Stable Diffusion
    uses them; `pooled` is the projection into the joint space, not normalised.
    """

    def __init__(
        self,
        clip: open_clip.CLIP,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        vocabulary: int | None,  # compact table over open_clip's tokens; None = open_clip's own ids
        remember: int,
    ) -> None:
        super().__init__(
            context=int(clip.context_length), ends=True, vocabulary=vocabulary, remember=remember
        )
        self.image_mean: Tensor  # (3, 1, 1)
        self.image_std: Tensor  # (3, 1, 1)
        self.clip = clip
        self.width = int(clip.ln_final.weight.shape[0])
        self.pooled_width = self.image_width = int(clip.text_projection.shape[1])
        size = clip.visual.image_size  # a pair in vision transformers, a number in ResNets
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    def encode(self, captions: Sequence[str]) -> Text:
        ids, mask = self.token_ids(captions)
        clip, length = self.clip, ids.shape[1]
        # The transformer is causal, so leaving out the padding changes no state that is kept.
        x = clip.token_embedding(ids) + clip.positional_embedding[:length]  # (N, L, D)
        x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
        x = clip.ln_final(x)
        last = x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]  # (N, D), end of text
        return Text(x, mask, last @ clip.text_projection)  # pooled (N, E)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to the joint space (N, E), not normalised."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.clip.encode_image(((images + 1) / 2 - self.image_mean) / self.image_std)

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale.exp()


def custom(
    *,
    embed_dim: int,  # E
    image_size: int,
    vision: Mapping[str, Any],  # open_clip's CLIPVisionCfg; `layers` as a list of 4 is a ResNet
    text: Mapping[str, Any],  # open_clip's CLIPTextCfg
    context: int,  # tokens, with the two ends
    vocabulary: int,  # rows of the table
    embedding_std: float,  # of the words' first vectors, and half of it of the positions'
    remember: int,
) -> ClipTower:
    """An untrained CLIP of these sizes, with open_clip's tokenizer over a compact table."""
    for key, given, known in (
        ("vision", vision, open_clip.CLIPVisionCfg), ("text", text, open_clip.CLIPTextCfg),
    ):  # fmt: skip
        names = [field.name for field in fields(known)]
        for name in given:
            if name not in names:
                near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
                raise ValueError(f"{key}.{name}: open_clip has no such field; nearest is {near!r}")
    clip = open_clip.CLIP(
        embed_dim,
        vision_cfg={**vision, "image_size": image_size},
        text_cfg={**text, "context_length": context, "vocab_size": vocabulary},
    )
    with torch.no_grad():
        clip.token_embedding.weight.normal_(std=embedding_std)
        clip.positional_embedding.normal_(std=embedding_std / 2)
    half = (0.5, 0.5, 0.5)
    return ClipTower(
        clip, image_mean=half, image_std=half, vocabulary=vocabulary, remember=remember
    )


def pretrained(*, name: str, weights: str, remember: int) -> ClipTower:
    """An open_clip model by name, with weights by open_clip's tag or from a local file.

    Raises ValueError for a name or tag that open_clip does not have, a file that is not there, and
    a download that fails.
    """
    tags = [tag for known, tag in open_clip.list_pretrained() if known == name]
    if name not in open_clip.list_models():
        raise ValueError(
            f"text.name={name!r}: open_clip has no such model. It has, among others, "
            f"{', '.join(get_close_matches(name, open_clip.list_models(), cutoff=0.0))}"
        )
    local = Path(weights)
    if weights not in tags and not local.is_file():
        raise ValueError(
            f"text.weights={weights!r}: neither a file nor a tag of {name}; its tags are "
            f"{', '.join(tags)}. Give one of them or a local file: text.weights=PATH"
        )
    try:
        clip, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)
    except Exception as error:  # open_clip and the hub raise many kinds; all mean no weights
        raise ValueError(
            f"text.weights={weights!r} of {name} could not be loaded ({error}). Offline, give a "
            "local file: text.weights=PATH"
        ) from error
    normalize = transform.transforms[-1]
    tower = ClipTower(
        clip, image_mean=normalize.mean, image_std=normalize.std, vocabulary=None,
        remember=remember,
    )  # fmt: skip
    tower.source = f"{name} {weights}"  # a checkpoint of ours names it and leaves its weights out
    return tower
