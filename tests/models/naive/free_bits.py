"""Which divergences free bits hold, each by itself: max(KL, free bits) instead of KL, KL the mean over rows."""

import torch

from . import naive_loss
from .common import Record, experts_of_row, kl_to_prior, observed_rows, product
from .mvae import sets_of_a_step


def held(model, batch, mask, seed):
    """(its factor in the loss besides beta, KL) of every one that the loss has."""
    kind, names, rows = type(model).__name__, list(model.modalities), mask.shape[0]

    def of(columns):  # the KL of what is left where only some entries of the mask are
        return naive_loss(model, batch, mask & columns, seed)[1]

    def only(name):
        return torch.tensor([n == name for n in names])

    def mean_kl(name, part=slice(None)):  # of one modality's expert
        record = Record(model, rows)
        for b, there in observed_rows(names, mask):
            if name in there:
                record.add(0.0, kl_to_prior(*(t[part] for t in experts_of_row(model, batch, b, [name])[name])))
        return record.kl

    if kind in ("TELBO", "JNF") and model.stage == 2:
        return [(1.0, of(only(n))) for n in names] if kind == "TELBO" else []
    total = of(torch.ones_like(mask))
    if kind == "MVTCAE":
        return [(1 - model.alpha, total)]
    if kind == "CRMVAE":
        each = (of(torch.arange(rows)[:, None] == b) / (1 + int(mask[b].sum())) for b in range(rows))
        return [(1.0, sum(each))]
    if kind == "MoPoE":
        dim, sizes = model.latent_dim, model.private_dims
        private = [mean_kl(n, slice(dim, None)) for n in names if sizes[n]]
        return [(1.0, total - sum(private)), *((model.beta_private, kl) for kl in private)]
    if kind == "MVAE":
        found = []
        for members, _ in sets_of_a_step(model, seed, rows):
            record = Record(model, rows)
            for b, there in observed_rows(names, mask & torch.tensor([n in members for n in names])):
                experts = experts_of_row(model, batch, b, there).values()
                record.add(0.0, kl_to_prior(*product([e[0] for e in experts], [e[1] for e in experts], prior=True)))
            found.append((1.0, record.kl))
        return found
    if kind == "DMVAE":
        dim, sizes = model.latent_dim, model.private_dims
        found = []
        for source in [None, *names]:
            counted = mask if source is None else mask & mask[:, names.index(source), None]
            shared = Record(model, rows)
            private = {n: Record(model, rows) for n in names if sizes[n]}
            for b, there in observed_rows(names, counted):
                experts = experts_of_row(model, batch, b, there)
                members = there if source is None else [source]
                mus, logvars = ([experts[n][i][:dim] for n in members] for i in (0, 1))
                shared.add(0.0, kl_to_prior(*product(mus, logvars, prior=source is None)))
                for n in there:
                    if sizes[n]:
                        private[n].add(0.0, kl_to_prior(*(t[dim:] for t in experts[n])))
            found += [(1.0, r.kl) for r in (shared, *private.values())]
        return found
    if kind == "Nexus":
        bottom, beta = [mean_kl(n) for n in names], model.beta
        model.beta = 1 + beta
        more = naive_loss(model, batch, mask, seed)[0]
        model.beta = beta
        top = more - naive_loss(model, batch, mask, seed)[0] - sum(bottom)  # the loss is linear in beta
        return [(1.0, kl) for kl in (top, *bottom)]
    return [(1.0, total)]
