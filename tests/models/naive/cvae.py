import torch

from mmvae_fast.reference import philox_normal

from .common import Record, experts_of_row, kl_between, log_p, weighted
from .joint import pool


def loss(model, batch, mask, seed):
    names, rows, size = list(model.modalities), mask.shape[0], 2 * model.latent_dim
    eps = philox_normal(seed, rows, model.latent_dim, dtype=torch.float64)
    record = Record(model, rows)
    record.ll = {name: record.ll[name] for name in model.targets}
    for b in range(rows):
        there = [n for i, n in enumerate(names) if mask[b, i]]
        targets = [n for n in there if n not in model.condition]
        if not targets:
            continue
        features = {n: torch.cat(pair) for n, pair in experts_of_row(model, batch, b, there).items()}
        given = {n: x for n, x in features.items() if n in model.condition}
        mu, logvar = pool(model.recognition, features, size).chunk(2)
        prior = (torch.zeros(model.latent_dim, dtype=torch.float64),) * 2
        if model.conditional_prior is not None:
            prior = pool(model.conditional_prior, given, size).chunk(2)
        z = torch.cat([mu + torch.exp(logvar / 2) * eps[b], pool(model.context, given, size)])
        kl = kl_between(mu, logvar, *prior)
        ll = {m: log_p(model.modalities[m], batch[m][b], model.decoders[m](z[None])[0]) for m in targets}
        record.add(model.beta * kl - sum(weighted(model, m, v) for m, v in ll.items()), kl, **ll)
    return record.result()
