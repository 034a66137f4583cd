import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, seed_tensor

from .common import (
    Record,
    decode_row,
    experts_of_row,
    kl_to_prior,
    log_p,
    noise_of_each,
    product,
    weighted,
)


def loss(model, batch, mask, seed):
    """One ELBO after another; nothing is computed once that could be computed again."""
    names, rows, dim, sizes = list(model.modalities), mask.shape[0], model.latent_dim, model.private_dims
    base = seed_tensor(seed)
    own_eps = noise_of_each(philox_normal, branch(base, 1), names, rows, dim)
    record = Record(model, rows)
    for s in range(1 + len(names)):
        eps = philox_normal(base, rows, dim, dtype=torch.float64) if s == 0 else own_eps[names[s - 1]]
        for b in range(rows):
            there = [n for i, n in enumerate(names) if mask[b, i]]
            if not there or (s > 0 and names[s - 1] not in there):
                continue
            experts = experts_of_row(model, batch, b, there)
            if s == 0:
                shared = [[t[:dim] for t in experts[n]] for n in there]
                mu, logvar = product([q[0] for q in shared], [q[1] for q in shared], prior=True)
            else:
                mu, logvar = (t[:dim] for t in experts[names[s - 1]])
            u = mu + torch.exp(logvar / 2) * eps[b]
            kl, ll = kl_to_prior(mu, logvar), {}
            for i, n in enumerate(names):
                if n not in there:
                    continue
                latent = u
                if sizes[n]:
                    mu_w, logvar_w = (t[dim:] for t in experts[n])
                    noise = philox_normal(
                        branch(base, 100_000 + i), rows, sizes[n], 1 + len(names), dtype=torch.float64
                    )
                    latent = torch.cat([u, mu_w + torch.exp(logvar_w / 2) * noise[s, b]])
                    kl = kl + kl_to_prior(mu_w, logvar_w)
                ll[n] = log_p(model.modalities[n], batch[n][b], decode_row(model, n, latent))
            total = model.beta * kl - sum(weighted(model, n, v) for n, v in ll.items())
            record.add(total, *((kl,) if s == 0 else ()), **(ll if s == 0 else {}))
    return record.result()
