import itertools

import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, seed_tensor

from .common import decode_row, experts_of_row, kl_to_prior, log_p, noise_of_each, product, weighted


def sets_of_a_step(model, seed, rows):
    """(members, noise [rows, D]) of all, of each one alone, and of the random sets.

    The sets of 2 to M-1 modalities stand in the order of their bitmasks, bit i = i-th modality; each has a normal, of
    dimension its place, and those with the largest ones are drawn.
    """
    names, base, dim = list(model.modalities), seed_tensor(seed), model.latent_dim
    sets = [(names, philox_normal(base, rows, dim, dtype=torch.float64))]
    sets += [([n], eps) for n, eps in noise_of_each(philox_normal, branch(base, 1), names, rows, dim).items()]
    if model.training and model.n_random_subsets:
        pool = [c for size in range(2, len(names)) for c in itertools.combinations(range(len(names)), size)]
        pool.sort(key=lambda members: sum(2**i for i in members))
        keys = philox_normal(branch(base, -1), 1, len(pool))[0].tolist()
        places = sorted(range(len(pool)), key=lambda place: -keys[place])[: model.n_random_subsets]
        for i, place in enumerate(places):
            eps = philox_normal(branch(base, 2 + i), rows, dim, dtype=torch.float64)
            sets.append(([names[m] for m in pool[place]], eps))
    return sets


def loss(model, batch, mask, seed):
    names = list(model.modalities)
    rows = mask.shape[0]
    sets = sets_of_a_step(model, seed, rows)
    loss, kl_mean, ll_mean = 0.0, 0.0, dict.fromkeys(names, 0.0)
    for k, (members, eps) in enumerate(sets):
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
                loss = loss - weighted(model, n, ll) / rows
                ll_mean[n] = ll_mean[n] + (ll / rows if k == 0 else 0.0)
    return loss, kl_mean, ll_mean
