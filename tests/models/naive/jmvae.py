from .common import experts_of_row, kl_between
from .joint import elbo_loss


def loss(model, batch, mask, seed):
    def gaps(b, there, mu, logvar):
        experts = experts_of_row(model, batch, b, there)
        return model.alpha * sum(kl_between(mu, logvar, *experts[m]) for m in there)

    return elbo_loss(model, batch, mask, seed, gaps)
