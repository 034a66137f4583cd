"""A VAE and a Transformer language model in one: texts from a latent space, and ways through it.

    text = Language.from_texts(texts)
    model = VAE({"text": text}, latent_dim=32, beta=0.1)
    fit(model, {"text": text.tokenize(texts)}, epochs=30)
    interpolate(model.eval(), texts[0], texts[1])

The functions take any model with a :class:`~mmvae_fast.modalities.Language` modality, so also a multimodal one:
``generate(model, model.encode({"image": x}).mu)`` describes images. Beta below 1 spends more nats on z, which a decoder
as strong as this one would otherwise rather do without; the bound it trains is then not the ELBO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvae_fast.modalities import Language
from mmvae_fast.models import MultimodalVAE
from mmvae_fast.reference import seed_tensor


@torch.no_grad()
def generate(
    model: MultimodalVAE,
    z: Tensor | int,
    *,
    name: str | None = None,
    seed: int | Tensor | None = None,
    prior: Any = None,
    **sampling: Any,
) -> list[str]:
    """Texts from latents z [N, D], or from so many draws of the prior.

    Args:
        model: in evaluation mode, if it has dropout.
        name: of the modality; the only Language one unless told.
        seed: of the latents and of the tokens drawn.
        prior: draw latents from it instead of the model's; see :meth:`MultimodalVAE.sample`.
        sampling: ``temperature``, ``top_k``, ``top_p``: see :meth:`mmvae_fast.modalities.Language.generate`; by default
            the most probable token each time.

    Raises:
        ValueError: no such modality, or latents or options that cannot be.
    """
    name, language = _language(model, name)
    if model.always_given:
        raise ValueError(
            f"generate: a {type(model).__name__} generates given a condition; use its decode or sample with one"
        )
    seed = seed_tensor(seed, device=model.device)
    if not isinstance(z, Tensor):
        if type(z) is not int or z < 0:
            raise ValueError(f"generate: z is {z!r}, expected latents [N, {model.latent_dim}] or a number of texts")
        drawn = (model.prior if prior is None else prior).sample(z, seed).to(model.dtype)
        z = model.with_prior_private(name, drawn, seed)
    elif z.dim() != 2:
        raise ValueError(f"generate: z has shape {list(z.shape)}, expected [N, {model.latent_dim}]")
    else:
        z = model._latent_for(name, z)
    return language.detokenize(language.generate(model.decoders[name], z, seed=seed, **sampling))


@torch.no_grad()
def reconstruct(model: MultimodalVAE, texts: Sequence[str], *, name: str | None = None) -> list[str]:
    """Every text as the model writes it from its own posterior mean; texts that are too long are cut off before."""
    name, language = _language(model, name)
    x = language.tokenize(texts, truncate=True).to(model.device)
    return language.detokenize(model.reconstruct({name: x}, to=name)[name])


@torch.no_grad()
def interpolate(
    model: MultimodalVAE, a: str, b: str, steps: int = 7, *, name: str | None = None, **sampling: Any
) -> list[str]:
    """``steps`` texts along the straight line from the posterior mean of ``a`` to that of ``b``, both included.

    Args:
        name, sampling: see :func:`generate`; ``seed`` is taken, too.

    Source: Bowman et al., Generating Sentences from a Continuous Space, CoNLL 2016.
    """
    if type(steps) is not int or steps < 2:
        raise ValueError(f"interpolate: steps is {steps!r}, expected 2 or more")
    name, language = _language(model, name)
    ends = model.encode({name: language.tokenize([a, b], truncate=True).to(model.device)}).point
    way = torch.linspace(0, 1, steps, dtype=ends.dtype, device=ends.device)[:, None]
    return generate(model, ends[0] * (1 - way) + ends[1] * way, name=name, **sampling)


def _language(model: MultimodalVAE, name: str | None) -> tuple[str, Language]:
    found = {n: m for n, m in model.modalities.items() if isinstance(m, Language)}
    if name is None and len(found) == 1:
        return next(iter(found.items()))
    if name not in found:
        raise ValueError(f"name is {name!r}, expected one of the Language modalities {list(found)} of the model")
    return name, found[name]
