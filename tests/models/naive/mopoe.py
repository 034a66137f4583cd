import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import choose_component, philox_normal, seed_tensor

from .common import Record, decode_row, experts_of_row, kl_to_prior, log_p, product, weighted


def loss(model, batch, mask, seed):
    names, dim, sizes = list(model.modalities), model.latent_dim, model.private_dims
    rows = mask.shape[0]
    eps = philox_normal(seed, rows, dim, dtype=torch.float64)
    record = Record(model, rows)
    for b in range(rows):
        observed = [n for i, n in enumerate(names) if mask[b, i]]
        if not observed:
            continue
        experts = experts_of_row(model, batch, b, observed)
        # counting order of bitmasks, bit i = i-th modality
        subsets = [[n for i, n in enumerate(names) if s >> i & 1] for s in range(1, 2 ** len(names))]
        posteriors = [
            product([experts[n][0][:dim] for n in s], [experts[n][1][:dim] for n in s], prior=len(s) == len(names))
            for s in subsets
            if set(s) <= set(observed)
        ]
        kl = sum(kl_to_prior(*q) for q in posteriors) / len(posteriors)
        n_available = torch.full((rows,), len(posteriors))
        mu, logvar = posteriors[int(choose_component(seed, n_available)[b])]
        z = mu + torch.exp(logvar / 2) * eps[b]
        record.add(model.beta * kl, kl)
        for n in observed:
            latent = z
            if sizes[n]:
                mu, logvar = (t[dim:] for t in experts[n])
                own_seed = branch(seed_tensor(seed), 100_000 + names.index(n))
                noise = philox_normal(own_seed, rows, sizes[n], dtype=torch.float64)[b]
                latent = torch.cat([z, mu + torch.exp(logvar / 2) * noise])
                private_kl = kl_to_prior(mu, logvar)
                record.add(model.beta * model.beta_private * private_kl, private_kl)
            ll = log_p(model.modalities[n], batch[n][b], decode_row(model, n, latent))
            record.add(-weighted(model, n, ll), **{n: ll})
    return record.result()
