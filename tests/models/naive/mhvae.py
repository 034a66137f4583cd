import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_normal, seed_tensor

from .common import Record, decode_row, experts_of_row, kl_between, kl_to_prior, log_p, product, weighted


def loss(model, batch, mask, seed):
    names, rows, dim, top = list(model.modalities), mask.shape[0], model.latent_dim, model.levels
    everything = [[n for i, n in enumerate(names) if s >> i & 1] for s in range(1, 2 ** len(names))]
    subsets = model.subsets or everything
    base = seed_tensor(seed)
    eps = {k: philox_normal(branch(base, k), rows, dim, len(subsets), dtype=torch.float64) for k in range(1, top + 1)}
    record = Record(model, rows)
    for b in range(rows):
        there = [n for i, n in enumerate(names) if mask[b, i]]
        usable = [s for s in subsets if set(s) <= set(there)]
        # features of every level: the encoder's output, then one network after the other
        features = {n: [torch.cat(pair)] for n, pair in experts_of_row(model, batch, b, there).items()}
        for n, path in features.items():
            for block in model.bottom_up[n]:
                path.append(block(path[-1]))
        for members in usable:
            k = subsets.index(members)
            experts = [features[n][-1].chunk(2) for n in members]
            mu, logvar = product([e[0] for e in experts], [e[1] for e in experts], prior=True)
            kl = kl_to_prior(mu, logvar)
            z = mu + torch.exp(logvar / 2) * eps[top][k, b]
            for level in range(top - 1, 0, -1):
                h = model.prior.top_down[level - 1](z)
                prior = model.prior.given[level - 1](h).chunk(2)
                network = model.posteriors[level - 1]
                experts = [prior, *(network(torch.cat([h, features[n][level - 1]])).chunk(2) for n in members)]
                mu, logvar = product([e[0] for e in experts], [e[1] for e in experts], prior=False)
                kl = kl + kl_between(mu, logvar, *prior)
                z = mu + torch.exp(logvar / 2) * eps[level][k, b]
            ll = {n: log_p(model.modalities[n], batch[n][b], decode_row(model, n, z)) for n in there}
            total = model.beta * kl - sum(weighted(model, n, v) for n, v in ll.items())
            share = len(usable)
            record.add(total / share, kl / share, **{n: v / share for n, v in ll.items()})
    return record.result()
