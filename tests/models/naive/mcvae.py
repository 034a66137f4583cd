import torch

from mmvae_fast.reference import philox_normal

from .common import Record, decode_row, experts_of_row, kl_to_prior, log_p, noise_of_each, weighted


def kl_to_log_uniform(log_alpha):
    """Molchanov, Ashukha & Vetrov 2017, equation 14, with k1 added so that it vanishes for alpha -> infinity."""
    k1, k2, k3 = 0.63576, 1.8732, 1.48695
    return -sum(k1 / (1 + torch.exp(-k2 - k3 * a)) - 0.5 * torch.log(1 + torch.exp(-a)) - k1 for a in log_alpha)


def loss(model, batch, mask, seed):
    names, rows, dim = list(model.modalities), mask.shape[0], model.latent_dim
    eps = noise_of_each(philox_normal, seed, names, rows, dim)
    record = Record(model, rows)
    for b in range(rows):
        there = [n for i, n in enumerate(names) if mask[b, i]]
        experts = experts_of_row(model, batch, b, there)
        for i in there:
            mu, logvar = experts[i]
            if model.sparse:
                kl = kl_to_log_uniform(model.log_alpha)
                z = mu + torch.exp(model.log_alpha / 2) * torch.abs(mu) * eps[i][b]
            else:
                kl = kl_to_prior(mu, logvar)
                z = mu + torch.exp(logvar / 2) * eps[i][b]
            ll = {j: log_p(model.modalities[j], batch[j][b], decode_row(model, j, z)) for j in there}
            total = model.beta * kl - sum(weighted(model, j, v) for j, v in ll.items())
            n = len(there)
            record.add(total / n, kl / n, **{j: v / n for j, v in ll.items()})
    return record.result()
