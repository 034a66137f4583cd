import torch

from mmvae_fast.reference import philox_laplace, philox_normal

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


def loss(model, batch, mask, seed):
    """Gradients of IWAE and STL as they are. DReG: its own rule, on the detached sample, then into the encoder.

    lw = f(z) - beta log q(z), so d/dphi log mean e^lw = sum w [lw'(z) dz - beta dlog q(z)], of which the last has the
    mean of beta w'(z) dz = beta (w - w^2) lw'(z) dz.
    """
    names, rows, samples, dim = list(model.modalities), mask.shape[0], model.n_samples, model.latent_dim
    log_density, noise = (log_laplace, philox_laplace) if model.family == "laplace" else (log_normal, philox_normal)
    eps = noise_of_each(noise, seed, names, rows, dim, samples)
    scale = dim * torch.softmax(model.prior.logits, -1)
    record = Record(model, rows)
    for b, there in observed_rows(names, mask):
        experts = experts_of_row(model, batch, b, there)
        log_weights, dregs = [], []  # by source, by sample
        for m in there:
            mu, logvar = experts[m]
            log_weights.append([])
            for k in range(samples):
                z = mu + torch.exp(logvar / 2) * eps[m][k, b]
                leaf = z.detach().requires_grad_() if model.estimator == "dreg" else z
                densities = []
                for j in there:
                    q = experts[j] if model.estimator == "iwae" else [t.detach() for t in experts[j]]
                    densities.append(log_density(leaf, *q))
                log_q = torch.logsumexp(torch.stack(densities), 0) - torch.log(torch.tensor(float(len(there))))
                log_prior = log_density(leaf, torch.zeros(dim), 2 * torch.log(scale))
                ll = {d: log_p(model.modalities[d], batch[d][b], decode_row(model, d, leaf)) for d in there}
                share = len(there) * samples
                record.add(0.0, (log_q - log_prior) / share, **{d: v / share for d, v in ll.items()})
                fit = sum(weighted(model, d, v) for d, v in ll.items())
                log_weights[-1].append(fit - model.beta * (log_q - log_prior))
                dregs.append((z, leaf))
        groups = [[lw for of_source in log_weights for lw in of_source]] if model.tight else log_weights
        flat = iter(dregs)
        for group in groups:
            stacked = torch.stack(group)
            if model.estimator == "iwae":
                value = torch.logsumexp(stacked, 0) - torch.log(torch.tensor(float(len(group))))
            elif model.estimator == "stl":
                value = sticking(stacked)
            else:
                w = torch.softmax(stacked, 0).detach()
                value = (w * stacked).sum()
                for wk, lw in zip(w, group, strict=True):
                    z, leaf = next(flat)
                    (slope,) = torch.autograd.grad(lw, leaf, retain_graph=True)
                    rule = wk - model.beta * (wk - wk**2)
                    value = value + ((rule * slope).detach() * (z - z.detach())).sum()
            record.add(-value / len(groups))
    return record.result()
