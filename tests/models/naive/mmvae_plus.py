import torch

from mmvae_fast.models.seeds import branch
from mmvae_fast.reference import philox_laplace, philox_normal, seed_tensor

from .common import (
    Record,
    decode_row,
    experts_of_row,
    log_laplace,
    log_normal,
    log_p,
    noise_of_each,
    observed_rows,
    sticking,
    weighted,
)


def log_weight(model, fit, u, w, log_density, log_q_u, log_q_w, log_p_w):
    """MMVAE+'s; CMVAE's as in the paper, a sum over clusters with their exact posterior q(c|u)."""
    if not hasattr(model.prior, "mu"):
        scale = model.latent_dim * torch.softmax(model.prior.logits, -1)
        log_p_u = log_density(u, torch.zeros_like(u), 2 * torch.log(scale))
        return fit + model.beta * (log_p_u + log_p_w - log_q_u - log_q_w), log_p_u
    pi = torch.exp(model.prior.logits) / torch.exp(model.prior.logits).sum()
    clusters = range(model.n_clusters)
    log_p_uc = [torch.log(pi[c]) + log_density(u, model.prior.mu[c], 2 * model.prior.log_scale[c]) for c in clusters]
    log_p_u = torch.log(sum(torch.exp(v) for v in log_p_uc))
    total = 0.0
    for c in clusters:
        q_c = torch.exp(log_p_uc[c] - log_p_u)
        total = total + q_c * (fit + model.beta * (log_p_uc[c] + log_p_w - log_q_u - log_q_w - torch.log(q_c)))
    return total, log_p_u


def loss(model, batch, mask, seed):
    names, rows, samples, dim = list(model.modalities), mask.shape[0], model.n_samples, model.latent_dim
    sizes = model.private_dims
    log_density, noise = (log_laplace, philox_laplace) if model.family == "laplace" else (log_normal, philox_normal)
    base, count = seed_tensor(seed), len(names)
    eps_u = noise_of_each(noise, base, names, rows, dim, samples)
    eps_w, eps_r = {}, {}
    for i, n in enumerate(names):
        if sizes[n]:
            eps_w[n] = noise(branch(base, 100_000 + i), rows, sizes[n], samples, dtype=torch.float64)
            eps_r[n] = noise(branch(base, 200_000 + i), rows, sizes[n], count * samples, dtype=torch.float64)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        experts = experts_of_row(model, batch, b, there)
        constants = {n: q if model.estimator == "iwae" else [t.detach() for t in q] for n, q in experts.items()}
        for m in there:
            (mu, logvar), log_weights, leaves = experts[m], [], []
            for k in range(samples):
                eps = torch.cat([eps_u[m][k, b], eps_w[m][k, b]]) if sizes[m] else eps_u[m][k, b]
                z = mu + torch.exp(logvar / 2) * eps  # u and w_m
                leaf = z.detach().requires_grad_() if model.estimator == "dreg" else z
                u, w = leaf[:dim], leaf[dim:]
                densities = [log_density(u, constants[j][0][:dim], constants[j][1][:dim]) for j in there]
                log_q_u = torch.log(sum(torch.exp(v) for v in densities) / len(there))
                log_q_w = log_p_w = torch.zeros(())
                if sizes[m]:
                    log_q_w = log_density(w, constants[m][0][dim:], constants[m][1][dim:])
                    log_p_w = log_density(w, torch.zeros_like(w), torch.zeros_like(w))
                ll = {}
                for d in there:
                    own = w
                    if d != m and sizes[d]:
                        scale = sizes[d] * torch.softmax(model.auxiliary_priors[d].logits, -1)
                        own = scale * eps_r[d][names.index(m) * samples + k, b]
                    latent = torch.cat([u, own]) if sizes[d] else u
                    ll[d] = log_p(model.modalities[d], batch[d][b], decode_row(model, d, latent))
                fit = sum(weighted(model, d, v) for d, v in ll.items())
                lw, log_p_u = log_weight(model, fit, u, w, log_density, log_q_u, log_q_w, log_p_w)
                share = len(there) * samples
                divergence = log_q_u + log_q_w - log_p_u - log_p_w
                record.add(0.0, divergence / share, **{d: v / share for d, v in ll.items()})
                log_weights.append(lw)
                leaves.append((z, leaf))
            stacked = torch.stack(log_weights)
            if model.estimator == "iwae":
                value = torch.log(torch.exp(stacked - stacked.max().detach()).mean()) + stacked.max().detach()
            elif model.estimator == "stl":
                value = sticking(stacked)
            else:
                weights = torch.softmax(stacked, 0).detach()
                value = (weights * stacked).sum()
                for wk, lw, (z, leaf) in zip(weights, log_weights, leaves, strict=True):
                    (slope,) = torch.autograd.grad(lw, leaf, retain_graph=True)
                    rule = wk - model.beta * (wk - wk**2)  # see mmvae.py
                    value = value + ((rule * slope).detach() * (z - z.detach())).sum()
            record.add(-value / len(there))
    return record.result()
