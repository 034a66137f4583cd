"""The maths of one row at a time, in float64: nothing shared with the package but its networks and its noise."""

from __future__ import annotations

import math

import torch


def product(mus, logvars, prior):
    precision = sum(torch.exp(-lv) for lv in logvars) + (1.0 if prior else 0.0)
    return sum(torch.exp(-lv) * m for m, lv in zip(mus, logvars, strict=True)) / precision, -torch.log(precision)


def kl_to_prior(mu, logvar):
    return sum(0.5 * (m * m + torch.exp(lv) - 1 - lv) for m, lv in zip(mu, logvar, strict=True))


def log_p(modality, x, params):
    """One sample, one number at a time."""
    total = torch.zeros((), dtype=torch.float64)
    if modality.likelihood == "categorical":
        for token, logits in zip(x.tolist(), params, strict=True):
            total = total + logits[token] - torch.log(torch.exp(logits).sum())
        return total
    for value, p in zip(x.flatten().tolist(), params.flatten(), strict=True):
        if modality.likelihood == "bernoulli":
            q = 1 / (1 + torch.exp(-p))
            total = total + value * torch.log(q) + (1 - value) * torch.log(1 - q)
        elif modality.likelihood == "normal":
            s = modality.scale
            total = total - 0.5 * ((value - p) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))
        else:
            total = total - torch.abs(value - p) / modality.scale - math.log(2 * modality.scale)
    return total


def noise_of_each(draw, seed, names, rows, dim, *samples):
    """One draw for all experts, one after another along the dimensions: by modality, [..., rows, dim]."""
    together = draw(seed, rows, len(names) * dim, *samples, dtype=torch.float64)
    return {n: together[..., i * dim : (i + 1) * dim] for i, n in enumerate(names)}


def weighted(model, name, log_likelihood, given=None):
    """One log-likelihood as it enters a loss, by the rules that LikelihoodWeights states, from what it was told."""
    weights = given or model.likelihood_weights
    option, modality = weights._option, model.modalities[name]
    if option == "none":
        return log_likelihood
    if option == "dimension":
        sizes = {n: math.prod(m.shape) for n, m in model.modalities.items()}
        return max(sizes.values()) / sizes[name] * log_likelihood
    if option != "learned":
        return option[name] * log_likelihood
    w = torch.exp(4 * torch.tanh(weights.log_weights[name] / 4))
    size = math.prod(modality.shape)
    if modality.likelihood == "normal":  # the same with the variance s^2 / w: residuals as they are, another constant
        constant, new = (torch.log(2 * math.pi * modality.scale**2 / v) / 2 for v in (w**0, w))
    elif modality.likelihood == "laplace":
        constant, new = (torch.log(2 * modality.scale / v) for v in (w**0, w))
    else:
        return w * log_likelihood + size * torch.log(w) / 2
    return w * (log_likelihood + size * constant) - size * new


def experts_of_row(model, batch, row, observed):
    """Encoders see the one row only."""
    return {m: [t[0] for t in model.encoders[m](batch[m][row : row + 1])] for m in observed}


def decode_row(model, name, z):
    return model.decoders[name](z[None])[0]


def kl_between(mu, logvar, mu_p, logvar_p):
    """KL of two diagonal Gaussians."""
    return sum(
        0.5 * (lp - lv + (torch.exp(lv) + (m - mp) ** 2) / torch.exp(lp) - 1)
        for m, lv, mp, lp in zip(mu, logvar, mu_p, logvar_p, strict=True)
    )


def log_normal(z, mu, logvar):
    """log density of a diagonal Gaussian."""
    return sum(
        -0.5 * ((a - m) ** 2 / torch.exp(lv) + lv + math.log(2 * math.pi))
        for a, m, lv in zip(z, mu, logvar, strict=True)
    )


def log_laplace(z, mu, logvar):
    """Of a Laplace distribution, logvar = 2 log scale."""
    return sum(
        -torch.abs(a - m) / torch.exp(lv / 2) - math.log(2) - lv / 2 for a, m, lv in zip(z, mu, logvar, strict=True)
    )


def sticking(log_weights):
    """Roeder et al.: the bound's value; its gradient is that of the log weights, weighed by constants."""
    bound = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
    surrogate = sum(w * lw for w, lw in zip(torch.softmax(log_weights, 0).detach(), log_weights, strict=True))
    return bound.detach() + surrogate - surrogate.detach()


def observed_rows(names, mask):
    """(row, the modalities it has) of every row that has any."""
    for b, row in enumerate(mask.tolist()):
        there = [name for name, observed in zip(names, row, strict=True) if observed]
        if there:
            yield b, there


class Record:
    """Sums over rows of what an Output reports."""

    def __init__(self, model, rows):
        self.rows, self.loss, self.kl = rows, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        self.ll = {name: torch.zeros((), dtype=torch.float64) for name in model.modalities}

    def add(self, loss=0.0, kl=0.0, **ll):
        self.loss = self.loss + loss / self.rows
        self.kl = self.kl + kl / self.rows
        for name, value in ll.items():
            self.ll[name] = self.ll[name] + value / self.rows

    def result(self):
        return self.loss, self.kl, self.ll
