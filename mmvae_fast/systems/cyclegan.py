"""CycleGAN: translation between the spaces of two modalities, learned from rows that need not belong together.

Zhu, Park, Isola & Efros, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, ICCV 2017
(https://arxiv.org/abs/1703.10593).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmvae_fast.modalities import Modality
from mmvae_fast.models.base import number, positive
from mmvae_fast.models.batch import Batch, check_batch
from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_uniform, seed_tensor
from mmvae_fast.systems.adversarial import (
    Average,
    SampleHistory,
    descend,
    discriminator_loss,
    generator_loss,
    mean,
    normalize_spectrum,
)
from mmvae_fast.systems.base import Sums
from mmvae_fast.systems.gan import check_continuous, network_kind, one_of
from mmvae_fast.systems.networks import make_features, make_generator
from mmvae_fast.systems.two_rates import TwoRateSystem
from mmvae_fast.training.data import split_mask

_PREVIEW = 10


class CycleGAN(TwoRateSystem):
    """Two generators a -> b and b -> a, and a discriminator in each space, with the least-squares loss.

    loss of the generators = adversarial + cycle_weight * (d(a, a') + d(b, b')) + identity_weight * (d(a, G_a(a)) +
    d(b, G_b(b))) + paired_weight * (d(b, G_b(a)) + d(a, G_a(b))), where a' = G_a(G_b(a)), the last term is over the
    rows that have both, and d(x, G) = -log p(x | G) / size: the modality's likelihood at the generator's output, in
    nats a number, mean over rows. With a Laplace likelihood that is the paper's L1 distance; where most of a picture
    is black, that one is content with black pictures, and the Bernoulli likelihood is not.

    Nothing but the last term says *which* b belongs to an a: without it, any one-to-one map between the two sets is
    consistent, and a handwritten 3 may as well become a spoken 7. Where translation has to keep the class, give some
    rows that have both and ``paired_weight`` above 0.

    The training data says by its mask which rows have which modality: sets of different sizes are filled up with
    anything and masked out, and a batch of tensors that holds fewer rows of the one is filled up with rows drawn from
    all that have it. (Of a Dataset, a batch without one of the two is passed over.) Rows that have both count as
    unpaired if ``paired_weight`` is 0.

    Args:
        modalities: two by name, of floating-point data: pictures, spectrograms, or latents of trained encoders as a
            Vector each. Of a Bernoulli modality samples lie in [0, 1].
        code_dim: numbers between the two halves of a default generator.
        identity_weight: None is half of ``cycle_weight`` for two modalities of the same shape, as in the paper, and 0
            for others, where it has no meaning.
        history: how many generated samples a discriminator remembers.
        spectral_norm, lr_generator, lr_discriminator, betas, gradient_clip, ema, network, width: as of :class:`GAN`.
        networks: "to_<name>" (generators, the other's samples -> [N, *shape], any real numbers) and "judge_<name>"
            (samples [N, *shape] -> scores [N]) of your own.

    :func:`mmvae_fast.systems.fit` reports "generator_loss", "discriminator_loss", and of the generators' "adversarial",
    "cycle", "identity" and "paired", without their weights.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        *,
        code_dim: int = 64,
        cycle_weight: float = 10.0,
        identity_weight: float | None = None,
        paired_weight: float = 0.0,
        history: int = 50,
        spectral_norm: bool = True,
        lr_generator: float = 2e-4,
        lr_discriminator: float = 4e-4,
        betas: Sequence[float] = (0.5, 0.999),
        gradient_clip: float | None = None,
        ema: float = 0.999,
        network: str = "auto",
        width: int = 32,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(modalities, networks)
        if len(self.modalities) != 2:
            raise ValueError(f"CycleGAN: got the modalities {list(self.modalities)}, expected exactly two")
        for name, modality in self.modalities.items():
            check_continuous("CycleGAN", name, modality)
        self.names: tuple[str, str] = tuple(self.modalities)  # type: ignore[assignment]
        shapes = {name: modality.shape for name, modality in self.modalities.items()}
        alike = len(set(shapes.values())) == 1
        if identity_weight and not alike:
            raise ValueError(
                f"identity_weight is {identity_weight}, but the shapes are {shapes}: a sample of one is no input of "
                "the other's generator; expected 0 or None"
            )
        self.cycle_weight = number("cycle_weight", cycle_weight)
        default = self.cycle_weight / 2 if alike else 0.0
        self.identity_weight = default if identity_weight is None else number("identity_weight", identity_weight)
        self.paired_weight = number("paired_weight", paired_weight)
        self.code_dim, self.width = positive("code_dim", code_dim), positive("width", width)
        if type(history) is not int or history < 0:
            raise ValueError(f"history is {history!r}, expected 0 or more")
        self.history = history
        self.spectral_norm = spectral_norm
        self._set_rates(lr_generator, lr_discriminator, betas, gradient_clip, ema)
        self.network = one_of("network", network, ("auto", "conv", "mlp"))
        kinds = {name: network_kind(network, [shape]) for name, shape in shapes.items()}

        def generator(name: str) -> nn.Module:
            other = self.other(name)
            features, size = make_features(shapes[other], width, kinds[other], normalized=True)
            return nn.Sequential(
                features, nn.Linear(size, code_dim), make_generator(code_dim, shapes[name], width, kinds[name])
            )

        def judge(name: str) -> nn.Module:
            features, size = make_features(shapes[name], width, kinds[name])
            return nn.Sequential(features, nn.Linear(size, 1), nn.Flatten(0))

        self.generators = nn.ModuleDict({n: self._network(f"to_{n}", lambda n=n: generator(n)) for n in self.names})
        self.judges = nn.ModuleDict({n: self._network(f"judge_{n}", lambda n=n: judge(n)) for n in self.names})
        self._check_networks()
        if spectral_norm:
            normalize_spectrum(self.judges)
        self.averages = nn.ModuleDict({n: Average(g, self.ema) for n, g in self.generators.items()})
        self._shown: dict[str, Tensor] = {}
        self.histories = nn.ModuleDict({n: SampleHistory(history, shapes[n]) for n in self.names})

    def other(self, name: str) -> str:
        """The other modality."""
        return self.names[1 - self.names.index(name)]

    def average(self, name: str) -> Average:
        """The averaged generator of a modality."""
        average = self.averages[name]
        assert isinstance(average, Average)
        return average

    def history_of(self, name: str) -> SampleHistory:
        """What the discriminator of a modality remembers."""
        history = self.histories[name]
        assert isinstance(history, SampleHistory)
        return history

    def options(self) -> dict[str, Any]:
        names = (
            "code_dim", "cycle_weight", "identity_weight", "paired_weight", "history", "spectral_norm", "lr_generator",
            "lr_discriminator", "gradient_clip", "ema", "network", "width",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "betas": list(self.betas)}

    # --- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        return self._adam(self.generators.parameters(), self.judges.parameters())

    def complete(self, batch: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
        """As many rows of the one as of the other: what a batch has less of is drawn from all the rows that have it,
        which count as unpaired there."""
        inputs, mask = split_mask(batch)
        of_all = split_mask(data)[1]
        if mask is None or of_all is None or any(name not in data for name in self.names):
            return batch
        here = [_column(mask, i, name, inputs[name]) for i, name in enumerate(self.names)]
        counts = [int(column.sum()) for column in here]
        few = counts.index(min(counts))
        name, lacking = self.names[few], max(counts) - min(counts)
        rows = _column(of_all, few, name, data[name]).nonzero()[:, 0]
        if not lacking or not len(rows):
            return batch
        u = philox_uniform(branch(seed_tensor(seed), 2), lacking, 1)[:, 0].double()
        drawn = rows[(u * len(rows)).long().clamp(max=len(rows) - 1).to(rows.device)]
        completed: dict[str, Any] = {n: torch.cat([x, data[n][drawn.to(data[n].device)]]) for n, x in inputs.items()}
        added = [torch.full((lacking,), i == few, device=column.device) for i, column in enumerate(here)]
        columns = [torch.cat(pair) for pair in zip(here, added, strict=True)]
        return {**completed, "mask": dict(zip(self.names, columns, strict=True))}

    def step(self, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer, seed: int) -> Sums:
        inputs, mask = split_mask(batch)
        checked = check_batch(self.modalities, inputs, mask, dtype=self.dtype, device=self.device)
        real = {name: _observed(checked, name) for name in self.names}
        if not all(map(len, real.values())):
            return {}  # a batch without one of the two
        both = checked.mask.all(1)
        nothing = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = dict.fromkeys(("adversarial", "cycle", "identity", "paired"), nothing)
        fakes = {}
        for name in self.names:
            source = self.other(name)
            params = self.generators[name](real[source])
            fake = fakes[name] = self.modalities[name].predict(params)
            terms["adversarial"] = terms["adversarial"] + generator_loss("least squares", self.judges[name](fake))
            terms["cycle"] = terms["cycle"] + self._distance(source, real[source], fake)
            if self.identity_weight:
                terms["identity"] = terms["identity"] + self._distance(name, real[name], real[name])
            if self.paired_weight and bool(both.any()):
                there = both[checked.mask[:, self.names.index(source)]]  # among the rows that have the source
                score = self.modalities[name].log_likelihood(checked.data[name][both], params[there])
                terms["paired"] = terms["paired"] - mean(score) / self.modalities[name].size
        g_loss = terms["adversarial"] + self.cycle_weight * terms["cycle"]
        g_loss = g_loss + self.identity_weight * terms["identity"] + self.paired_weight * terms["paired"]
        descend(optimizer, g_loss, list(self.generators.parameters()), self.gradient_clip)

        base = seed_tensor(seed)
        d_loss: Tensor = torch.zeros((), device=self.device)
        for i, name in enumerate(self.names):
            shown = self.history_of(name).exchange(fakes[name], branch(base, i))
            score = discriminator_loss("least squares", self.judges[name](real[name]), self.judges[name](shown))
            d_loss = d_loss + score
        descend(optimizer, d_loss, list(self.judges.parameters()), self.gradient_clip)
        for name in self.names:
            self.average(name).update(self.generators[name])
        n, n_both = checked.rows, int(both.sum())
        sums: Sums = {"generator_loss": (g_loss * n, n), "discriminator_loss": (d_loss * n, n)}
        sums |= {what: (terms[what] * n, n) for what in ("adversarial", "cycle")}
        if self.identity_weight:
            sums["identity"] = (terms["identity"] * n, n)
        if self.paired_weight:
            sums["paired"] = (terms["paired"] * n_both, n_both)
        self._shown = {name: x[:_PREVIEW].detach() for name, x in real.items()}
        return sums

    def _distance(self, name: str, x: Tensor, source: Tensor) -> Tensor:
        """d(x, G(source)), G the generator of x's modality."""
        modality = self.modalities[name]
        return -mean(modality.log_likelihood(x, self.generators[name](source))) / modality.size

    # --- translation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, batch: Mapping[str, Tensor], to: str) -> Tensor:
        """One modality [B, *shape] from the other, by the averaged generator.

        Args:
            batch: the other modality by name; what else is there is not looked at.
        """
        if to not in self.modalities:
            raise ValueError(f"to is {to!r}, expected one of {list(self.names)}")
        source = self.other(to)
        if source not in batch:
            raise ValueError(f"batch holds {list(batch)}, expected {source!r} to translate to {to!r}")
        self.modalities[source].check(source, batch[source], dtype=self.dtype)
        return self.modalities[to].predict(self.averages[to](batch[source]))

    @torch.no_grad()
    def cycle(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """There and back again, of every modality in the batch."""
        return {n: self.translate({self.other(n): self.translate({n: x}, self.other(n))}, n) for n, x in batch.items()}

    def previewed(self) -> list[str]:
        return list(self.names)

    def preview(self) -> dict[str, Tensor]:
        """Ten rows of the last training batch in each space, and what became of them in the other."""
        shown: dict[str, Tensor] = {}
        for name, x in self._shown.items():
            other = self.other(name)
            shown |= {name: x, f"{name}_to_{other}": self.translate({name: x}, other)}
        return shown


def _observed(batch: Batch, name: str) -> Tensor:
    """The rows that have it."""
    x = batch.data.get(name)
    if x is None:
        raise ValueError(f"modality {name!r} is in no row of a batch, expected both in the data; mask what is missing")
    observed = batch.observed[name]
    return x if observed is None else x[observed]


def _column(mask: Any, i: int, name: str, x: Tensor) -> Tensor:
    """Which rows have a modality, bool [N], of any kind of mask."""
    if isinstance(mask, Mapping):
        return mask[name] if name in mask else torch.ones(len(x), dtype=torch.bool, device=x.device)
    return mask[:, i]
