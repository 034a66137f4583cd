import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, seed_tensor

from .common import Record, decode_row, experts_of_row, kl_to_prior, log_p, weighted
from .joint import elbo_loss


def loss(model, batch, mask, seed):
    if model.stage == 1:
        return elbo_loss(model, batch, mask, seed)
    names, rows = list(model.modalities), mask.shape[0]
    record = Record(model, rows)
    gamma = model.likelihood_weights if model.gamma is None else model.gamma
    for i, m in enumerate(names):
        eps = philox_normal(branch(seed_tensor(seed), i), rows, model.latent_dim, dtype=torch.float64)
        for b in range(rows):
            if mask[b, i]:
                mu, logvar = experts_of_row(model, batch, b, [m])[m]
                z, kl = mu + torch.exp(logvar / 2) * eps[b], kl_to_prior(mu, logvar)
                ll = log_p(model.modalities[m], batch[m][b], decode_row(model, m, z))
                record.add(model.beta * kl - weighted(model, m, ll, gamma), kl, **{m: ll})
    return record.result()
