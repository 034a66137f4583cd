"""Joint encoders, one row at a time: all features in a row, what is missing 0, what is observed appended."""

import torch

from mmvae_fast.reference import philox_normal

from .common import Record, decode_row, kl_to_prior, log_p, observed_rows, weighted


def perceptron(layers, x):
    *hidden, last = [layer for layer in layers.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in hidden:
        x = torch.relu(layer.weight @ x + layer.bias)
    return last.weight @ x + last.bias


def pool(pool, features, size):
    """features by modality, of those observed."""
    if not features:
        return torch.zeros(pool.size_out, dtype=torch.float64)
    blank, no = torch.zeros(size, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    row, weights = [], []
    for name, layer in pool.inputs.items():
        row += [features.get(name, blank), no + 1 if name in features else no]
        weights += [layer.weight, layer.bias[:, None]]
    return perceptron(pool.layers, torch.relu(torch.cat(weights, 1) @ torch.cat(row)))


def joint_of_row(model, batch, row, observed):
    networks = model.joint.encoders or model.encoders
    features = {m: torch.cat(networks[m](batch[m][row : row + 1]), -1)[0] for m in observed}
    return pool(model.joint.pool, features, 2 * model.latent_dim).chunk(2)


def elbo_loss(model, batch, mask, seed, extra=lambda b, there, mu, logvar: 0.0):
    names, rows = list(model.modalities), mask.shape[0]
    eps = philox_normal(seed, rows, model.latent_dim, dtype=torch.float64)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        mu, logvar = joint_of_row(model, batch, b, there)
        z = mu + torch.exp(logvar / 2) * eps[b]
        ll = {m: log_p(model.modalities[m], batch[m][b], decode_row(model, m, z)) for m in there}
        kl = kl_to_prior(mu, logvar)
        fit = sum(weighted(model, m, v) for m, v in ll.items())
        record.add(model.beta * kl - fit + extra(b, there, mu, logvar), kl, **ll)
    return record.result()
