import torch

from mmvae_fast.reference import philox_normal

from .common import Record, decode_row, experts_of_row, kl_to_prior, log_p, observed_rows, product, weighted


def fuse(model, names, experts, there):
    mus, logvars = [experts[n][0] for n in there], [experts[n][1] for n in there]
    rule = model._rule
    if rule.startswith("product"):
        return product(mus, logvars, prior=rule == "product")
    if rule == "weighted product":
        weights = 1 / (1 + torch.exp(-model.fusion.logits))
        precision = sum(weights[names.index(n)] * torch.exp(-lv) for n, lv in zip(there, logvars, strict=True))
        total = sum(weights[names.index(n)] * torch.exp(-lv) * m for n, m, lv in zip(there, mus, logvars, strict=True))
        return total / precision, -torch.log(precision)
    mu = sum(mus) / len(mus)
    if rule == "moments":
        return mu, torch.log(sum(torch.exp(lv) + m**2 for m, lv in zip(mus, logvars, strict=True)) / len(mus) - mu**2)
    return mu, 2 * torch.log(sum(torch.exp(lv / 2) for lv in logvars) / len(mus))


def loss(model, batch, mask, seed):
    names, rows = list(model.modalities), mask.shape[0]
    eps = philox_normal(seed, rows, model.latent_dim, dtype=torch.float64)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        mu, logvar = fuse(model, names, experts_of_row(model, batch, b, there), there)
        z = mu + torch.exp(logvar / 2) * eps[b]
        ll = {m: log_p(model.modalities[m], batch[m][b], decode_row(model, m, z)) for m in there}
        kl = kl_to_prior(mu, logvar)
        record.add(model.beta * kl - sum(weighted(model, m, v) for m, v in ll.items()), kl, **ll)
    return record.result()
