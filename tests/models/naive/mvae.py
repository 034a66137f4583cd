import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, seed_tensor

from .common import decode_row, experts_of_row, kl_to_prior, learned_charge, log_p, noise_of_each, product


def loss(model, batch, mask, seed):
    names = list(model.modalities)
    rows = mask.shape[0]
    base = seed_tensor(seed)
    dim = model.latent_dim
    sets = [(names, philox_normal(base, rows, dim, dtype=torch.float64))]
    sets += [([n], eps) for n, eps in noise_of_each(philox_normal, branch(base, 1), names, rows, dim).items()]
    for i, row in enumerate(model._random_subsets(branch(base, -1)).tolist()):
        chosen = [n for n, there in zip(names, row, strict=True) if there]
        sets.append((chosen, philox_normal(branch(base, 2 + i), rows, dim, dtype=torch.float64)))
    assert len(sets) == 1 + len(names) + model.n_random_subsets
    loss, kl_mean, ll_mean = 0.0, 0.0, dict.fromkeys(names, 0.0)
    for k, (members, eps) in enumerate(sets):
        loss = loss - sum(learned_charge(model, n) for n in members)
        for b in range(rows):
            there = [n for i, n in enumerate(names) if mask[b, i] and n in members]
            if not there:
                continue
            experts = experts_of_row(model, batch, b, there)
            mu, logvar = product([experts[n][0] for n in there], [experts[n][1] for n in there], prior=True)
            kl = kl_to_prior(mu, logvar)
            z = mu + torch.exp(logvar / 2) * eps[b]
            loss = loss + model.beta * kl / rows
            kl_mean = kl_mean + (kl / rows if k == 0 else 0.0)
            for n in there:
                ll = log_p(model.modalities[n], batch[n][b], decode_row(model, n, z))
                loss = loss - model.likelihood_weights[n] * ll / rows
                ll_mean[n] = ll_mean[n] + (ll / rows if k == 0 else 0.0)
    return loss, kl_mean, ll_mean
