"""What a model is taken apart into: modules to export, which call the model's own methods, and their interface.

Encoders and decoders are files of their own. Everything between them is traced as one graph from the model's own
``_experts``, ``posterior`` and ``with_private``, given what the encoders said: so a model that fuses in a new way is
exported without a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast import reference
from mmvae_fast.modalities import Modality
from mmvae_fast.modalities.language import _OURS as OFFSET
from mmvae_fast.modalities.language import BEGIN, END, PAD, Language
from mmvae_fast.models import CVAE, JNF, MultimodalVAE, Nexus
from mmvae_fast.models.batch import Batch
from mmvae_fast.models.experts import Experts
from mmvae_fast.models.joint import JointVAE
from mmvae_fast.models.priors import StandardNormal
from mmvae_fast.onnx import draws
from mmvae_fast.onnx.errors import ExportError
from mmvae_fast.onnx.manifest import (
    CLASSIFIER_PART,
    FUSION_PART,
    IO,
    MODEL_SYSTEM,
    NO_PRIOR,
    PRIOR_PART,
    STANDARD_NORMAL,
    Interface,
    LanguageSpec,
    ModalitySpec,
    NoiseSpec,
    begin_part,
    decoder_part,
    encoder_part,
    features_part,
    lift_part,
    private_noise,
    step_part,
)

_PRIVATE_BRANCH = 100_000  # of a private latent's seed, by place of the modality: MultimodalVAE._private_seed


_NO_CHAINS = (
    "posterior_sample: rows with several, but not all, modalities get draws of the Gaussian with the posterior's "
    "moments, where the model runs Hamiltonian Monte Carlo from them; mu, logvar and point are the model's"
)


@dataclass(frozen=True)
class Part:
    """A module to export, what it is to take and give, and which of what it takes is noise."""

    module: nn.Module
    io: IO
    noise: tuple[NoiseSpec, ...] = ()


@dataclass(frozen=True)
class Taken:
    """A model taken apart: its parts by name, and what the manifest says of the whole."""

    parts: dict[str, Part]
    interface: Interface
    posterior: str = "gaussian"
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def take_apart(
    model: MultimodalVAE,
    classifier: nn.Module | None = None,
    classes: Sequence[str] = (),
    system: str = MODEL_SYSTEM,
) -> Taken:
    """The parts of a model on the CPU, in float32 and evaluation mode.

    Args:
        classifier: a :class:`mmvae_fast.systems.FusionClassifier` around the model, with so many ``classes``.

    Raises:
        ExportError: a part that a bundle has no place for; names it.
    """
    modalities = [_modality_spec(model, name) for name in model.modalities]
    fusion = Fusion(model, modalities)
    q = fusion.example()
    private = _private_noise(model)
    prior, prior_noise = _prior(model, private)
    interface = Interface(
        model.latent_dim,
        modalities,
        prior,
        model.context_dim if isinstance(model, CVAE) else 0,
        len(classes),
        (*draws.posterior_noise(q), *private),
        prior_noise,
        system=system,
    )
    fusion.noise = [n.name for n in interface.fusion_noise]
    modules: dict[str, nn.Module] = {FUSION_PART: fusion}
    if prior_noise:
        modules[PRIOR_PART] = Prior(model, modalities, [n.name for n in prior_noise])
    if classifier is not None:
        modules[CLASSIFIER_PART] = Classifier(fusion, classifier)
    for spec in modalities:
        for name, module in _networks(model, spec).items():
            if name in modules:
                raise ExportError(f"{name}: two modalities of {list(model.modalities)} have parts of that name")
            modules[name] = module
    io = interface.io()
    noise = {FUSION_PART: interface.fusion_noise, PRIOR_PART: interface.prior_noise}
    parts = {name: Part(modules[name], io[name], tuple(noise.get(name, ()))) for name in io}
    return Taken(parts, interface, draws.posterior_kind(q), notes(model), tuple(classes))


def notes(model: MultimodalVAE) -> tuple[str, ...]:
    """Where a bundle serves something else than the model."""
    if isinstance(model, JNF) and len(model.modalities) > 2:
        return (_NO_CHAINS,)
    return ()


def modality_spec(name: str, modality: Modality) -> ModalitySpec:
    """What a kind of data says of itself."""
    words = getattr(modality, "words", None)
    return ModalitySpec(
        name=name,
        kind=modality.kind,
        shape=tuple(modality.shape),
        param_shape=tuple(modality.param_shape),
        dtype=str(modality.dtype).removeprefix("torch."),
        likelihood=modality.likelihood,
        scale=float(modality.scale),
        vocabulary_size=getattr(modality, "vocabulary_size", None if words is None else len(words)),
        vocabulary=words,
        gaps=getattr(modality, "missing", False),
    )


def _modality_spec(model: MultimodalVAE, name: str) -> ModalitySpec:
    modality, expert = model.modalities[name], model.network_dims[name]
    private, nexus, conditional = model.private_dims[name], isinstance(model, Nexus), isinstance(model, CVAE)
    code = model.latent_dim + model.context_dim if isinstance(model, CVAE) else expert
    decodable = not isinstance(model, CVAE) or name in model.targets
    return replace(
        modality_spec(name, modality),
        expert_dim=expert,
        code_dim=code,
        decodable=decodable,
        features=isinstance(model, JointVAE) and len(model.joint.encoders) > 0,
        own_code=bool(private) or nexus or conditional,
        lifted=nexus,
        tokens=_language(name, modality, model.decoders[name] if decodable else None, code),
    )


def _language(name: str, modality: Any, decoder: Any, code_dim: int) -> LanguageSpec | None:
    if not modality.autoregressive:
        return None
    if decoder is None:  # only ever given
        return LanguageSpec(_tokenizer_file(name), PAD, BEGIN, END, OFFSET, ())
    if not isinstance(modality, Language) or not (hasattr(decoder, "begin") and hasattr(decoder, "step")):
        raise ExportError(
            f"modality {name!r}: a {type(decoder).__name__} that decodes a {type(modality).__name__} has no begin and "
            "step, which generate one token at the cost of one; expected those of TransformerDecoder"
        )
    with torch.no_grad():
        cache = decoder.begin(torch.zeros(1, code_dim))
    _, heads, _, width = cache[0][0].shape
    return LanguageSpec(_tokenizer_file(name), PAD, BEGIN, END, OFFSET, (2 * len(cache), heads, width))


def _private_noise(model: MultimodalVAE) -> list[NoiseSpec]:
    family = getattr(model, "family", "normal")
    return [
        NoiseSpec(private_noise(name), family, branch=_PRIVATE_BRANCH + place)
        for place, name in enumerate(model.modalities)
        if model.private_dims[name]
    ]


def _prior(model: MultimodalVAE, private: list[NoiseSpec]) -> tuple[str, tuple[NoiseSpec, ...]]:
    """What the prior is called, and the noise of its part; none where eps is the draw."""
    if not model.generative:
        return NO_PRIOR, ()
    standard = isinstance(model.prior, StandardNormal)
    if standard and not private:
        return STANDARD_NORMAL, ()
    return STANDARD_NORMAL if standard else type(model.prior).__name__, (*draws.prior_noise(model.prior), *private)


def _networks(model: MultimodalVAE, spec: ModalitySpec) -> dict[str, nn.Module]:
    """The parts of one modality."""
    name, modality = spec.name, model.modalities[spec.name]
    modules: dict[str, nn.Module] = {encoder_part(name): model.encoders[name]}
    if spec.features:
        assert isinstance(model, JointVAE)
        modules[features_part(name)] = model.joint.encoders[name]
    if spec.lifted:
        assert isinstance(model, Nexus)
        modules[lift_part(name)] = model.top_decoders[name]
    if spec.tokens is not None and spec.decodable:
        modules[begin_part(name)], modules[step_part(name)] = Begin(model.decoders[name]), Step(model.decoders[name])
    elif spec.decodable:
        modules[decoder_part(name)] = Decoder(model.decoders[name], modality.predict)
    return modules


def _tokenizer_file(name: str) -> str:
    return f"tokenizer_{name}.json"


class Begin(nn.Module):
    """z [N, D] -> what is remembered before the first token, [2 * layers, N, heads, 1, width]."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder: Any = decoder

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([t for pair in self.decoder.begin(z) for t in pair])


class Step(nn.Module):
    """z [N, D], last token [N], its place [], what is remembered [..., past, width] -> logits [N, V], the same + 1."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder: Any = decoder

    def forward(self, z: Tensor, last: Tensor, t: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        remembered = past.unbind(0)
        cache = list(zip(remembered[::2], remembered[1::2], strict=True))
        logits = self.decoder.step(z, last, t, cache)
        return logits, torch.stack([tensor for pair in cache for tensor in pair])


class Decoder(nn.Module):
    """z [N, D] -> the likelihood's parameters, and the prediction in data space."""

    def __init__(self, decoder: nn.Module, predict: Callable[[Tensor], Tensor]):
        super().__init__()
        self.decoder, self.predict = decoder, predict

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        params = self.decoder(z)
        return params, self.predict(params) + 0  # a node of its own, even where the prediction is the parameters


@dataclass(frozen=True)
class _Said:
    """In the place of a modality's data: what the encoders made of it."""

    own: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor] | None


class Fusion(nn.Module):
    """Experts mu, logvar [B, M, E], mask [B, M] (features [B, M, D]), noise -> what ``Interface`` says of the part."""

    def __init__(self, model: MultimodalVAE, modalities: Sequence[ModalitySpec]):
        super().__init__()
        self.model, self.specs, self.noise = model, modalities, ["eps"]
        self.features = any(m.features for m in modalities)

    def given(self, mu: Tensor, logvar: Tensor, mask: Tensor, *features: Tensor) -> tuple[Batch, Experts]:
        """A batch, and its experts, as the model makes them once the encoders have run."""
        said = {}
        for place, spec in enumerate(self.specs):
            width = spec.expert_dim or self.model.latent_dim
            own = (mu[:, place, :width], logvar[:, place, :width])
            said[spec.name] = _Said(own, (features[0][:, place], features[1][:, place]) if features else None)
        observed = {spec.name: mask[:, place] for place, spec in enumerate(self.specs)}
        batch = Batch(said, observed, mask, tuple(observed))  # type: ignore[arg-type]  # read by _encode alone
        with _answering(self.model):
            return batch, self.model._experts(batch)

    def example(self) -> Any:
        """A posterior, to see of which kind it is."""
        dims = max(m.expert_dim or 0 for m in self.specs), self.model.latent_dim
        experts, features = (torch.zeros(1, len(self.specs), dim) for dim in dims)
        mask = torch.ones(1, len(self.specs), dtype=torch.bool)
        batch, given = self.given(experts, experts.clone(), mask, *([features, features.clone()] * self.features))
        with torch.no_grad(), _answering(self.model):
            return self.model.posterior(batch, given)

    def forward(self, mu: Tensor, logvar: Tensor, mask: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        features, rest = (rest[:2], rest[2:]) if self.features else ((), rest)
        noise = dict(zip(self.noise, rest, strict=True))
        batch, experts = self.given(mu, logvar, mask, *features)
        with _answering(self.model):
            q = self.model.posterior(batch, experts)
        q_mu, q_logvar, point = q.mu, q.logvar, q.point
        found = [draws.draw(q, noise), q_mu, q_logvar, reference.gaussian_kl(q_mu, q_logvar), point + 0]
        codes, context = _codes(self.model, self.specs, batch, experts, point, noise)
        return (*found, *codes, *(t + 0 for t in context))


def _codes(
    model: MultimodalVAE,
    specs: Sequence[ModalitySpec],
    batch: Batch,
    experts: Experts,
    point: Tensor,
    noise: Mapping[str, Tensor],
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """What the decoders take of modalities whose latent is not all; and of a CVAE the context and p(z | c)."""
    own = [spec for spec in specs if spec.own_code and spec.decodable]
    if isinstance(model, CVAE):
        _, prior, context = model._distributions(batch, experts)
        return [torch.cat([point, context], -1)] * len(own), (context, prior.mu, prior.logvar)
    seed = torch.zeros(1, dtype=torch.int64)  # any: the noise is given
    with _drawing(model, noise):
        codes = [model.with_private(m.name, point, experts, batch.observed[m.name], seed) for m in own]
    return codes, ()


class Prior(nn.Module):
    """Noise -> z [N, D] of the prior, and what the decoders take of modalities whose latent is not all."""

    def __init__(self, model: MultimodalVAE, modalities: Sequence[ModalitySpec], noise: Sequence[str]):
        super().__init__()
        self.model, self.names, self.noise = model, [m.name for m in modalities if m.own_code and m.decodable], noise

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        noise = dict(zip(self.noise, given, strict=True))
        z, seed = draws.draw_prior(self.model.prior, noise), torch.zeros(1, dtype=torch.int64)
        with _drawing(self.model, noise):
            return (z + 0, *(self.model.with_prior_private(name, z, seed) for name in self.names))


class Classifier(nn.Module):
    """Experts mu, logvar [B, M, E], mask [B, M] -> probabilities [B, C]."""

    def __init__(self, fusion: Fusion, classifier: Any):
        super().__init__()
        self.fusion, self.classifier = fusion, classifier

    def forward(self, mu: Tensor, logvar: Tensor, mask: Tensor) -> Tensor:
        _, experts = self.fusion.given(mu, logvar, mask)
        return self.classifier._head(experts, mask).softmax(-1)


class replaced:
    """One method of one model (the exporter's own copy) replaced for a while."""

    def __init__(self, model: nn.Module, name: str, method: Callable):
        self.model, self.name, self.method = model, name, method

    def __enter__(self) -> None:
        self.model.__dict__[self.name] = self.method

    def __exit__(self, *_: Any) -> None:
        del self.model.__dict__[self.name]


def _answering(model: MultimodalVAE) -> replaced:
    """The encoders answer with what they are given to have said."""

    def encode(name: str, said: _Said, networks: nn.ModuleDict | None = None) -> tuple[Tensor, Tensor] | None:
        return said.own if networks is None else said.features

    return replaced(model, "_encode", encode)


def _drawing(model: MultimodalVAE, noise: Mapping[str, Tensor]) -> replaced:
    """Private priors draw with given noise."""
    auxiliary = getattr(model, "generate_from", "prior") == "auxiliary"
    priors: Any = model.auxiliary_priors if auxiliary else model.private_priors

    def prior_private(name: str, n: int, seed: Tensor) -> Tensor:
        return draws.draw_prior(priors[name], {"eps": noise[private_noise(name)]})

    return replaced(model, "prior_private", prior_private)
