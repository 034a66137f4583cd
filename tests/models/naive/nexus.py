import math

import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, philox_uniform, seed_tensor

from .common import Record, decode_row, experts_of_row, kl_to_prior, log_normal, log_p, observed_rows, weighted


def heard_in_row(u, there, names, dropout):
    """Which messages a row keeps: uniforms say whether it drops any, how many, and in which order they go."""
    if float(u[0]) >= dropout or len(there) < 2:
        return there
    keep = 1 + math.floor(float(u[1]) * (len(there) - 1))
    return sorted(there, key=lambda n: float(u[2 + names.index(n)]))[:keep]


def loss(model, batch, mask, seed):
    names, rows = list(model.modalities), mask.shape[0]
    base, count, dim = seed_tensor(seed), len(model.modalities), model.latent_dim
    sizes = model.network_dims
    eps = {n: philox_normal(branch(base, i), rows, sizes[n], dtype=torch.float64) for i, n in enumerate(names)}
    top_eps = philox_normal(branch(base, count), rows, dim, dtype=torch.float64)
    uniforms = philox_uniform(branch(base, count + 1), rows, 2 + count)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        experts = experts_of_row(model, batch, b, there)
        z = {n: mu + torch.exp(logvar / 2) * eps[n][b] for n, (mu, logvar) in experts.items()}
        ll = {n: log_p(model.modalities[n], batch[n][b], decode_row(model, n, z[n])) for n in there}
        total = sum(model.beta * kl_to_prior(*experts[n]) - weighted(model, n, ll[n]) for n in there)
        heard = heard_in_row(uniforms[b], there, names, model.dropout if model.training else 0.0)
        message = sum(model.messages[n](z[n].detach()) for n in heard) / len(heard)
        out = model.top_encoder(message)
        mu, logvar = out[:dim], out[dim:]
        above = mu + torch.exp(logvar / 2) * top_eps[b]
        kl = kl_to_prior(mu, logvar)
        total = total + model.beta * kl
        log_scale = torch.tensor(2 * math.log(model.scale))
        for n in there:
            fit = log_normal(z[n].detach(), model.top_decoders[n](above), log_scale.expand(sizes[n]))
            total = total - model.gamma[n] * fit
            negative_entropy = -sum(0.5 * math.log(2 * math.pi * math.e) + lv / 2 for lv in experts[n][1])
            kl = kl + negative_entropy - fit
        record.add(total, kl, **ll)
    return record.result()
