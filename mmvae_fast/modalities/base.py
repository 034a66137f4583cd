"""The base of all modalities, and the registry that brings them back from their JSON description."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmvae_fast import functional
from mmvae_fast.modalities.imports import Imported, allows
from mmvae_fast.modalities.networks import MLPDecoder, MLPEncoder

MODALITIES: dict[str, type[Modality]] = {}


class Modality:
    """One kind of data: the shape of a sample, its likelihood p(x | z), and networks to and from the latent space.

    A plain description, not a module: models own the networks it makes, and it round-trips through JSON
    (:meth:`config`, :meth:`from_config`). A subclass names its ``kind``, which nothing else has, and the
    ``likelihoods`` that fit it.

    Args:
        shape: of one sample, without the batch dimension.
        likelihood: family of :func:`mmvae_fast.functional.log_likelihood`.
        scale: standard deviation of the normal likelihood, or scale of the Laplace one.
        hidden: sizes of the hidden layers of the default networks; the decoder has them in reverse order.
        encoder: your own module instead, x [B, *shape] -> (mu, logvar), each [B, latent_dim]; or the import path of its
            class, "package.module:Class", which a model calls as Class(latent_dim, **encoder_options). A saved model
            then names it, and may load it (see :meth:`mmvae_fast.models.MultimodalVAE.load`).
        decoder: your own module instead, z [N, latent_dim] -> likelihood parameters [N, *param_shape]; or a path.
        encoder_options, decoder_options: keyword arguments of such a class, as JSON can hold them.

    Raises:
        ValueError, TypeError: a shape, likelihood, scale or network that cannot be.
    """

    kind: ClassVar[str] = ""
    likelihoods: ClassVar[tuple[str, ...]] = ()
    autoregressive: ClassVar[bool] = False
    """Whether each part of x depends on those before it: p(x | z) = prod_t p(x_t | z, x_<t). Then the decoder is called
    with z [N, latent_dim] and x [N, *shape], and predictions come from :meth:`generate`."""
    sampling: Mapping[str, Any] = MappingProxyType({})
    """Of an autoregressive modality: keyword arguments of :meth:`generate` for what a model predicts. Not saved."""
    dtype: torch.dtype = torch.float32
    padding: int | None = None
    """Of token ids, the one that fills up what is too short, and is no part of it."""

    def __init_subclass__(cls) -> None:
        kind = cls.__dict__.get("kind")
        if not kind:
            return  # an inherited kind is the parent's; see config()
        known = MODALITIES.get(kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):  # else the cell ran again
            raise ValueError(
                f"{cls.__name__}: kind {kind!r} is that of {known.__module__}.{known.__qualname__} already"
            )
        MODALITIES[kind] = cls

    def __init__(
        self,
        shape: Sequence[int],
        *,
        likelihood: str,
        scale: float = 1.0,
        hidden: Sequence[int] = (256, 256),
        encoder: nn.Module | str | None = None,
        decoder: nn.Module | str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.shape = self._sizes("shape", shape)
        self.hidden = self._sizes("hidden", hidden, may_be_empty=True)
        if likelihood not in self.likelihoods:
            raise ValueError(f"{type(self).__name__}: likelihood is {likelihood!r}, expected one of {self.likelihoods}")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"{type(self).__name__}: scale is a {type(scale).__name__}, expected a number")
        if not 0 < scale < math.inf:
            raise ValueError(f"{type(self).__name__}: scale is {scale}, expected a positive number")
        self.likelihood = likelihood
        self.scale = float(scale)
        self.imported: dict[str, Imported] = {}
        """Of "encoder" and "decoder", those that were given by an import path."""
        self.encoder = self._own("encoder", encoder, encoder_options)
        self.decoder = self._own("decoder", decoder, decoder_options)

    def _own(self, role: str, network: Any, options: Mapping[str, Any] | None) -> nn.Module | None:
        where = f"{type(self).__name__}: {role}"
        if isinstance(network, str):
            try:
                self.imported[role] = Imported(network, options)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where}: {error}") from error
            return None
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"{where} is a {type(network).__name__}, expected an nn.Module or an import path")
        if options is not None:
            raise TypeError(f"{where}_options is given, expected none without an import path as the {role}")
        return network

    def _sizes(self, what: str, sizes: Sequence[int], *, may_be_empty: bool = False) -> tuple[int, ...]:
        valid = isinstance(sizes, Sequence) and all(type(n) is int and n > 0 for n in sizes)
        if not valid or not (sizes or may_be_empty):
            raise ValueError(f"{type(self).__name__}: {what} is {sizes!r}, expected positive integers")
        return tuple(sizes)

    @property
    def size(self) -> int:
        """How many numbers (or tokens) one sample holds."""
        return math.prod(self.shape)

    @property
    def param_shape(self) -> tuple[int, ...]:
        """Shape of the decoder's output for one sample."""
        return self.shape

    def encoder_for(self, latent_dim: int) -> nn.Module:
        """The encoder of a model: a new one of the class given by its import path, else :meth:`make_encoder`'s."""
        imported = self.imported.get("encoder")
        return self.make_encoder(latent_dim) if imported is None else imported.make(latent_dim)

    def decoder_for(self, latent_dim: int) -> nn.Module:
        """The decoder of a model: a new one of the class given by its import path, else :meth:`make_decoder`'s."""
        imported = self.imported.get("decoder")
        return self.make_decoder(latent_dim) if imported is None else imported.make(latent_dim)

    def make_encoder(self, latent_dim: int) -> nn.Module:
        """A module x [B, *shape] -> (mu, logvar), each [B, latent_dim]; your own one if you gave one."""
        return MLPEncoder(self.size, self.hidden, latent_dim) if self.encoder is None else self.encoder

    def make_decoder(self, latent_dim: int) -> nn.Module:
        """A module z [N, latent_dim] -> likelihood parameters [N, *param_shape]; your own one if you gave one."""
        if self.decoder is not None:
            return self.decoder
        return MLPDecoder(latent_dim, self.hidden[::-1], self.param_shape)

    def log_likelihood(self, x: Tensor, params: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | params) in nats, summed over a sample: x [B, *shape], params [..., B, *param_shape] -> [..., B].

        ``mask`` bool [B]: a missing row counts 0, whatever it holds.
        """
        return functional.log_likelihood(x, params, family=self.likelihood, scale=self.scale, mask=mask)

    def predict(self, params: Tensor) -> Tensor:
        """The most telling x of likelihood parameters [..., *param_shape], in data space: the mean of p(x | params)."""
        return params.sigmoid() if self.likelihood == "bernoulli" else params

    def generate(self, decoder: nn.Module, z: Tensor) -> Tensor:
        """x [N, *shape] from a decoder and latents z [N, latent_dim]; an autoregressive modality builds it up."""
        return self.predict(decoder(z))

    def comparable(self, x: Tensor) -> Tensor:
        """Data or predictions [..., *shape] in a space where one can be held against the other: as they are, unless
        predictions are of another kind, such as shares of counts."""
        return x

    def check(self, name: str, x: Any, *, dtype: torch.dtype | None = None) -> None:
        """Refuse what cannot be a batch [B, *shape] of this modality; looks at shape and type only, never at values.

        ``dtype`` is what to expect of floating-point data instead of float32 (models moved to another type).
        """
        expected = f"[B, {', '.join(map(str, self.shape))}]"
        if not isinstance(x, Tensor):
            raise TypeError(f"modality {name!r}: got a {type(x).__name__}, expected a tensor {expected}")
        wanted = self.dtype if dtype is None or not self.dtype.is_floating_point else dtype
        if x.dtype != wanted:
            cast = f"; convert it with x.to({wanted})" if self.dtype.is_floating_point else ""
            raise TypeError(f"modality {name!r}: got {x.dtype}, expected {wanted}{cast}")
        if x.dim() != 1 + len(self.shape) or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"modality {name!r}: got shape {list(x.shape)}, expected {expected}")

    def check_values(self, name: str, x: Tensor) -> None:
        """Refuse values p(x | z) is not defined for. Reads the data, so it is for data sets, not for every step."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"modality {name!r}: holds NaN or infinite values; mark such rows as missing with a mask")

    def config(self) -> dict[str, Any]:
        """A JSON description from which :meth:`from_config` makes an equal modality.

        Raises:
            TypeError: a class without a kind of its own, which would come back as another class.
        """
        if MODALITIES.get(self.kind) is not type(self):
            raise TypeError(
                f"{type(self).__name__} has no kind of its own (it would be loaded as a {self.kind!r} modality): set "
                f"`kind = ...` in the class"
            )
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "likelihood": self.likelihood,
            "scale": self.scale,
            "hidden": list(self.hidden),
            "custom_encoder": self.encoder is not None or "encoder" in self.imported,
            "custom_decoder": self.decoder is not None or "decoder" in self.imported,
            **{role: imported.config() for role, imported in self.imported.items()},
        }

    @classmethod
    def _from_config(cls, config: dict[str, Any], **networks: Any) -> Modality:
        return cls(config["shape"], **_common(config), **networks)

    @staticmethod
    def from_config(
        config: dict[str, Any],
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        allow_import: bool | str | Sequence[str] = False,
    ) -> Modality:
        """The modality a :meth:`config` describes, of whatever kind.

        Args:
            encoder, decoder: custom networks; they replace those that the description gives by import path.
            allow_import: True: import the others by their paths, which runs their code; or only from these packages.

        Raises:
            ValueError: unknown kind, a malformed description, custom networks that were not passed (or were, and the
                description has none), or import paths that are not allowed or lead nowhere.
        """
        kind = config.get("kind") if isinstance(config, dict) else None
        if not isinstance(kind, str) or kind not in MODALITIES:
            raise ValueError(f"modality of kind {kind!r}, expected one of {sorted(MODALITIES)}")
        networks: dict[str, Any] = {}
        for role, network in (("encoder", encoder), ("decoder", decoder)):
            networks[role] = network
            if network is None and config.get(role) is not None:
                networks |= _permitted(role, config[role], allow_import)
            elif bool(config.get(f"custom_{role}")) != (network is not None):
                has, got = ("a custom", "none") if network is None else ("the default", "one")
                raise ValueError(f"{kind} modality was saved with {has} {role}, but {got} was passed")
        try:
            return MODALITIES[kind]._from_config(config, **networks)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"malformed description of a {kind} modality: {error!r} in {config}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, likelihood={self.likelihood!r})"


def _permitted(role: str, described: Any, allow_import: bool | str | Sequence[str]) -> dict[str, Any]:
    """The arguments that make a described network by its import path, where that is allowed and there is one."""
    path = described.get("path") if isinstance(described, dict) else None
    if not isinstance(path, str):
        raise ValueError(f"{role} is {described!r}, expected an import path and options")
    if not allows(path, allow_import):
        raise ValueError(
            f"its {role} is the code at {path!r}, and allow_import is {allow_import!r}: pass allow_import=True or "
            f"allow_import=[{path.partition('.')[0].partition(':')[0]!r}] if you trust it, or the {role} itself"
        )
    try:
        Imported(path, described.get("options"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{role}: {error}") from error
    return {role: path, f"{role}_options": described.get("options")}


def _common(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("likelihood", "scale", "hidden")}
