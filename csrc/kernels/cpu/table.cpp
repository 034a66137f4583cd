// All CPU kernels of one instruction set. CMake compiles this file once per set, with MMVAE_ISA naming it.
#include "gaussian_kl.h"
#include "mopoe_sample_kl.h"
#include "poe_sample_kl.h"
#include "product_of_experts.h"
#include "reparameterize.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
static void normals(const Normals& a, T* out, int64_t begin, int64_t end) {
  NoiseTile<T> noise;
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    for (int64_t k = 0; k < a.samples; ++k) {
      noise.fill(r0, r1, d0, d1, k, a.seed, a.stream);
      for (int64_t r = r0; r < r1; ++r)
        memcpy(out + (k * a.rows + r) * a.dim + d0, noise.row(r), (d1 - d0) * sizeof(T));
    }
  });
}

template <class T>
static constexpr Table<T> kTable = {reparameterize<T>,
                                    reparameterize_backward<T>,
                                    gaussian_kl<T>,
                                    gaussian_kl_backward<T>,
                                    product_of_experts<T>,
                                    poe_sample_kl<T>,
                                    poe_backward<T>,
                                    mopoe_sample_kl<T>,
                                    mopoe_sample_kl_backward<T>,
                                    normals<T>};

extern const Kernels kKernels;
const Kernels kKernels = {MMVAE_CAPABILITY, kTable<float>, kTable<double>};

}  // namespace MMVAE_ISA
}  // namespace mmvae
