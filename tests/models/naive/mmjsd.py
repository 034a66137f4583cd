import torch

from mmvae_fast.reference import choose_component, philox_normal

from .common import Record, decode_row, experts_of_row, kl_between, log_p, observed_rows, weighted


def loss(model, batch, mask, seed):
    names, rows, dim = list(model.modalities), mask.shape[0], model.latent_dim
    eps = philox_normal(seed, rows, dim, dtype=torch.float64)
    chosen = choose_component(seed, mask.sum(1))
    zero = torch.zeros(dim, dtype=torch.float64)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        experts = experts_of_row(model, batch, b, there)
        mu, logvar = experts[there[int(chosen[b])]]
        z = mu + torch.exp(logvar / 2) * eps[b]
        ll = {m: log_p(model.modalities[m], batch[m][b], decode_row(model, m, z)) for m in there}
        compared = [*experts.values(), (zero, zero)]
        share = 1 / len(compared)
        precision = sum(share * torch.exp(-lv) for _, lv in compared)
        f_mu = sum(share * torch.exp(-lv) * m for m, lv in compared) / precision
        js = sum(share * kl_between(m, lv, f_mu, -torch.log(precision)) for m, lv in compared)
        record.add(model.beta * js - sum(weighted(model, m, v) for m, v in ll.items()), js, **ll)
    return record.result()
