#include "checks.h"
#include "device.h"

namespace mmvae {

static Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const Tensor& seed,
                             const std::optional<int64_t>& n_samples, int64_t family) {
  const Check check("reparameterize");
  check.gaussian(mu, logvar);
  check.samples(n_samples);
  const Tensor key = check.seed(seed, mu);
  check.family(family);
  const int64_t dim = mu.size(mu.dim() - 1), samples = n_samples.value_or(1);
  const int64_t rows = dim == 0 ? 0 : mu.numel() / dim;
  const RowsOf m(mu), lv(logvar);
  Tensor z = empty(sampled(n_samples, shape_of(mu)), mu.scalar_type(), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const Reparameterize<S> args{m.as<S>(), lv.as<S>(), rows, dim, samples, seed_in(key), static_cast<Family>(family),
                                 data<S>(z)};
    run(&Table<S>::reparameterize, args, rows, dim * samples, mu);
  });
  return z;
}

static std::tuple<Tensor, Tensor> reparameterize_backward(const Tensor& grad_z, const Tensor& z, const Tensor& mu,
                                                          const Tensor& logvar, const Tensor& seed, int64_t family) {
  const Check check("reparameterize_backward");
  check.gaussian(mu, logvar);
  const Tensor key = check.seed(seed, mu);
  check.family(family);
  const int64_t dim = mu.size(mu.dim() - 1);
  const int64_t rows = dim == 0 ? 0 : mu.numel() / dim;
  const int64_t samples = z.dim() == mu.dim() ? 1 : z.size(0);
  check.shaped("grad_z", grad_z, shape_of(z), mu.scalar_type(), mu);
  check.shaped("z", z, z.dim() == mu.dim() ? shape_of(mu) : sampled(samples, shape_of(mu)), mu.scalar_type(), mu);
  const RowsOf m(mu), lv(logvar);
  const Tensor g = dense(grad_z), sample = dense(z);
  Tensor grad_mu = empty(shape_of(mu), mu.scalar_type(), mu), grad_logvar = empty(shape_of(mu), mu.scalar_type(), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const ReparameterizeBackward<S> args{data<S>(g),
                                         data<S>(sample),
                                         m.as<S>(),
                                         lv.as<S>(),
                                         rows,
                                         dim,
                                         samples,
                                         seed_in(key),
                                         static_cast<Family>(family),
                                         data<S>(grad_mu),
                                         data<S>(grad_logvar)};
    run(&Table<S>::reparameterize_backward, args, rows, dim * samples, mu);
  });
  return {grad_mu, grad_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, MMVAE_DISPATCH_KEY, m) {
  m.impl("reparameterize", TORCH_BOX(&reparameterize));
  m.impl("reparameterize_backward", TORCH_BOX(&reparameterize_backward));
}

}  // namespace mmvae
