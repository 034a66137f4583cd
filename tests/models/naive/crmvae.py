import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, seed_tensor

from .common import (
    Record,
    decode_row,
    experts_of_row,
    kl_between,
    kl_to_prior,
    log_p,
    noise_of_each,
    observed_rows,
    product,
    weighted,
)


def loss(model, batch, mask, seed):
    names, rows, dim = list(model.modalities), mask.shape[0], model.latent_dim
    base = seed_tensor(seed)
    eps = philox_normal(base, rows, dim, dtype=torch.float64)
    own_eps = noise_of_each(philox_normal, branch(base, 1), names, rows, dim)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        experts = experts_of_row(model, batch, b, there)
        mu, logvar = product([experts[n][0] for n in there], [experts[n][1] for n in there], prior=False)
        z = mu + torch.exp(logvar / 2) * eps[b]
        kl = kl_to_prior(mu, logvar)
        total = model.beta * (kl + sum(kl_between(mu, logvar, *experts[m]) for m in there))
        joint = {}
        for m in there:
            own = experts[m][0] + torch.exp(experts[m][1] / 2) * own_eps[m][b]
            joint[m] = log_p(model.modalities[m], batch[m][b], decode_row(model, m, z))
            alone = log_p(model.modalities[m], batch[m][b], decode_row(model, m, own))
            total = total - (weighted(model, m, joint[m]) + weighted(model, m, alone)) / 2
        record.add(total / (len(there) + 1), kl, **joint)
    return record.result()
