// The noise itself, for NumPy and for tests.
#include "noise.h"
#include "ops.h"

namespace mmvae {
namespace MMVAE_ISA {

template <class T>
static void write_normals(const Normals& a, T* out, int64_t begin, int64_t end) {
  NoiseTile<T> noise;
  for_tiles(begin, end, a.dim, [&](int64_t r0, int64_t r1, int64_t d0, int64_t d1) {
    for (int64_t k = 0; k < a.samples; ++k) {
      noise.fill(r0, r1, d0, d1, k, {a.seed, 0}, Family::normal, a.stream);
      for (int64_t r = r0; r < r1; ++r)
        memcpy(out + (k * a.rows + r) * a.dim + d0, noise.row(r), (d1 - d0) * sizeof(T));
    }
  });
}

void normals(const Normals& a, float* out, int64_t begin, int64_t end) { write_normals(a, out, begin, end); }
void normals(const Normals& a, double* out, int64_t begin, int64_t end) { write_normals(a, out, begin, end); }

}  // namespace MMVAE_ISA
}  // namespace mmvae
