import torch

from mmvae_fast.reference import choose_component, philox_normal

from .common import decode_row, experts_of_row, kl_to_prior, log_p, product


def loss(model, batch, mask, seed):
    names = list(model.modalities)
    rows = mask.shape[0]
    eps = philox_normal(seed, rows, model.latent_dim, dtype=torch.float64)
    loss, kl_mean, ll_mean = 0.0, 0.0, dict.fromkeys(names, 0.0)
    for b in range(rows):
        observed = [n for i, n in enumerate(names) if mask[b, i]]
        if not observed:
            continue
        experts = experts_of_row(model, batch, b, observed)
        # counting order of bitmasks, bit i = i-th modality
        subsets = [[n for i, n in enumerate(names) if s >> i & 1] for s in range(1, 2 ** len(names))]
        posteriors = [
            product([experts[n][0] for n in s], [experts[n][1] for n in s], prior=len(s) == len(names))
            for s in subsets
            if set(s) <= set(observed)
        ]
        kl = sum(kl_to_prior(*q) for q in posteriors) / len(posteriors)
        n_available = torch.full((rows,), len(posteriors))
        mu, logvar = posteriors[int(choose_component(seed, n_available)[b])]
        z = mu + torch.exp(logvar / 2) * eps[b]
        loss = loss + model.beta * kl / rows
        kl_mean = kl_mean + kl / rows
        for n in observed:
            ll = log_p(model.modalities[n], batch[n][b], decode_row(model, n, z))
            loss = loss - model.likelihood_weights[n] * ll / rows
            ll_mean[n] = ll_mean[n] + ll / rows
    return loss, kl_mean, ll_mean
