import torch

from mmvae_fast.reference import philox_normal

from .common import Record, experts_of_row, log_normal
from .joint import elbo_loss, joint_of_row


def log_q(flow, z, mu, logvar):
    """Change of variables, a dimension at a time: layer by layer, in turn from either end."""
    log_det = 0.0
    for made in flow.layers:
        shift, log_scale = made(z[None])
        z = torch.stack([(z[d] - shift[0, d]) / torch.exp(log_scale[0, d]) for d in reversed(range(len(z)))])
        log_det = log_det - sum(log_scale[0])
    return log_normal(z, mu, logvar) + log_det


def loss(model, batch, mask, seed):
    if model.stage == 1:
        return elbo_loss(model, batch, mask, seed)
    names, rows = list(model.modalities), mask.shape[0]
    eps = philox_normal(seed, rows, model.latent_dim, dtype=torch.float64)
    record = Record(model, rows)
    for b in range(rows):
        there = [n for i, n in enumerate(names) if mask[b, i]]
        if there:
            mu, logvar = joint_of_row(model, batch, b, there)
            z = (mu + torch.exp(logvar / 2) * eps[b]).detach()
            experts = experts_of_row(model, batch, b, there)
            ll = {m: log_q(model.flows[m], z, *experts[m]) for m in there}
            record.add(-sum(ll.values()), 0.0, **ll)
    return record.result()
