import torch

from mmvae_fast.reference import philox_normal

from .common import Record, decode_row, experts_of_row, kl_between, kl_to_prior, log_p, observed_rows, product, weighted


def loss(model, batch, mask, seed):
    names, rows = list(model.modalities), mask.shape[0]
    eps = philox_normal(seed, rows, model.latent_dim, dtype=torch.float64)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        experts = experts_of_row(model, batch, b, there)
        mu, logvar = product([experts[n][0] for n in there], [experts[n][1] for n in there], prior=False)
        z = mu + torch.exp(logvar / 2) * eps[b]
        n = len(there)
        ll = {m: log_p(model.modalities[m], batch[m][b], decode_row(model, m, z)) for m in there}
        fit = sum(weighted(model, m, v) for m, v in ll.items())
        kl = kl_to_prior(mu, logvar)
        conditional = sum(kl_between(mu, logvar, *experts[m]) for m in there) / n
        total = -(n - model.alpha) / n * fit + model.beta * ((1 - model.alpha) * kl + model.alpha * conditional)
        record.add(total, kl, **ll)
    return record.result()
