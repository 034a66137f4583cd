import math

import torch

from mmvae_fast.reference import philox_normal

from .common import Record, decode_row, experts_of_row, kl_to_prior, log_normal, log_p, observed_rows, weighted


def loss(model, batch, mask, seed):
    (name,), rows, dim = model.modalities, mask.shape[0], model.latent_dim
    if hasattr(model, "n_samples"):
        return importance_weighted(model, batch, mask, seed)
    eps = philox_normal(seed, rows, dim, dtype=torch.float64)
    record = Record(model, rows)
    for b, there in observed_rows([name], mask):
        mu, logvar = experts_of_row(model, batch, b, there)[name]
        ll = log_p(model.modalities[name], batch[name][b], decode_row(model, name, mu + torch.exp(logvar / 2) * eps[b]))
        kl = kl_to_prior(mu, logvar)
        record.add(model.beta * kl - weighted(model, name, ll), kl, **{name: ll})
    return record.result()


def importance_weighted(model, batch, mask, seed):
    """IWAE, with DReG's rule as mmvae.py derives it."""
    (name,), rows, dim, samples = model.modalities, mask.shape[0], model.latent_dim, model.n_samples
    eps = philox_normal(seed, rows, dim, samples, dtype=torch.float64)
    record, zero = Record(model, rows), torch.zeros(dim, dtype=torch.float64)
    for b, there in observed_rows([name], mask):
        mu, logvar = experts_of_row(model, batch, b, there)[name]
        log_weights, slopes = [], []
        for k in range(samples):
            z = mu + torch.exp(logvar / 2) * eps[k, b]
            leaf, q = z, (mu, logvar)
            if model.estimator == "dreg":
                leaf, q = z.detach().requires_grad_(), (mu.detach(), logvar.detach())
            ll = log_p(model.modalities[name], batch[name][b], decode_row(model, name, leaf))
            ratio = log_normal(leaf, zero, zero) - log_normal(leaf, *q)
            log_weights.append(weighted(model, name, ll) + model.beta * ratio)
            record.add(0.0, -ratio / samples, **{name: ll / samples})
            if model.estimator == "dreg":
                (slope,) = torch.autograd.grad(log_weights[-1], leaf, retain_graph=True)
                slopes.append(slope * (z - z.detach()))
        if model.estimator == "iwae":
            value = torch.log(sum(torch.exp(lw) for lw in log_weights)) - math.log(samples)
        else:
            total = sum(math.exp(lw.item()) for lw in log_weights)
            w = [math.exp(lw.item()) / total for lw in log_weights]
            value = sum(wk * lw for wk, lw in zip(w, log_weights, strict=True))
            rules = [wk - model.beta * (wk - wk**2) for wk in w]
            value = value + sum((rule * slope).sum() for rule, slope in zip(rules, slopes, strict=True))
        record.add(-value)
    return record.result()
