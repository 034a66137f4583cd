#include "checks.h"
#include "experts.h"

namespace mmvae {

static Tensor reparameterize(const Tensor& mu, const Tensor& logvar, const Tensor& seed,
                             const std::optional<int64_t>& n_samples) {
  const Check check("reparameterize");
  check.gaussian(mu, logvar);
  check.samples(n_samples);
  check.seed(seed);
  const int64_t dim = mu.size(mu.dim() - 1), samples = n_samples.value_or(1);
  const int64_t rows = dim == 0 ? 0 : mu.numel() / dim;
  const RowsOf m(mu), lv(logvar);
  Tensor z = empty(sampled(n_samples, shape_of(mu)), mu.scalar_type(), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Reparameterize<T> args{m.as<T>(), lv.as<T>(), rows, dim, samples, seed_of(seed), data<T>(z)};
    parallel_rows(rows, dim * samples, [&](int64_t b, int64_t e) { table<T>().reparameterize(args, b, e); });
  });
  return z;
}

static std::tuple<Tensor, Tensor> reparameterize_backward(const Tensor& grad_z, const Tensor& z, const Tensor& mu,
                                                          const Tensor& logvar, const Tensor& seed) {
  const Check check("reparameterize_backward");
  check.gaussian(mu, logvar);
  check.seed(seed);
  const int64_t dim = mu.size(mu.dim() - 1);
  const int64_t rows = dim == 0 ? 0 : mu.numel() / dim;
  const int64_t samples = z.dim() == mu.dim() ? 1 : z.size(0);
  check.shaped("grad_z", grad_z, shape_of(z), mu.scalar_type());
  check.shaped("z", z, z.dim() == mu.dim() ? shape_of(mu) : sampled(samples, shape_of(mu)), mu.scalar_type());
  const RowsOf m(mu), lv(logvar);
  const Tensor g = dense(grad_z), sample = dense(z);
  Tensor grad_mu = empty(shape_of(mu), mu.scalar_type(), mu), grad_logvar = empty(shape_of(mu), mu.scalar_type(), mu);
  for_type(mu.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const ReparameterizeBackward<T> args{data<T>(g), data<T>(sample), m.as<T>(),        lv.as<T>(),          rows, dim,
                                         samples,    seed_of(seed),   data<T>(grad_mu), data<T>(grad_logvar)};
    parallel_rows(rows, dim * samples, [&](int64_t b, int64_t e) { table<T>().reparameterize_backward(args, b, e); });
  });
  return {grad_mu, grad_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, CPU, m) {
  m.impl("reparameterize", TORCH_BOX(&reparameterize));
  m.impl("reparameterize_backward", TORCH_BOX(&reparameterize_backward));
}

}  // namespace mmvae
