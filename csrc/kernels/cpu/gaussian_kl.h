// KL( N(mu, e^logvar) || N(0, I) ) of each row. Floor: 8 bytes an element forward, 16 backward.
#pragma once

#include "../gaussian.h"
#include "../kernels.h"
#include "math.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
static void gaussian_kl(const GaussianKL<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T *mu = a.mu.row(r), *logvar = a.logvar.row(r);
    Vec<T> total{};
    for_lanes<T>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      const Vec<T> h = load(logvar + i, n) * static_cast<T>(0.5);
      total += kl_to_standard(load(mu + i, n), h, exp_and_tail(h).minus_1_minus_x);  // lanes past the end are 0: KL 0
    });
    a.kl[r] = sum(total);
  }
}

template <class T>
static void gaussian_kl_backward(const GaussianKLBackward<T>& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T *mu = a.mu.row(r), *logvar = a.logvar.row(r);
    const Vec<T> grad_kl = splat<Vec<T>>(a.grad_kl[r]);
    for_lanes<T>(a.dim, [&](int64_t i, int n) __attribute__((always_inline)) {
      const Vec<T> lv = load(logvar + i, n);
      const Vec<T> variance_minus_1 = exp_and_tail(lv).minus_1_minus_x + lv;
      const Moments<Vec<T>> grad = kl_adjoint(grad_kl, load(mu + i, n), variance_minus_1);
      store(a.grad_mu + r * a.dim + i, grad.mu, n);
      store(a.grad_logvar + r * a.dim + i, grad.logvar, n);
    });
  }
}

}  // namespace MMVAE_ISA
}  // namespace mmvae
