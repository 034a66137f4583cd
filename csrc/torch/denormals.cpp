// Denormal numbers as zero, on every thread that torch computes with: torch.set_flush_denormal reaches its caller
// alone.
#include "checks.h"
#include "device.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace mmvae {

#if defined(__SSE2__)
constexpr unsigned kFlush = 0x8040;  // of MXCSR: denormal results (bit 15) and denormal operands (bit 6)

static bool swap_flushing(bool on) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(on ? before | kFlush : before & ~kFlush);
  return (before & kFlush) == kFlush;
}
#elif defined(__aarch64__)
constexpr uint64_t kFlush = uint64_t{1} << 24;  // of FPCR: FZ

static bool swap_flushing(bool on) {
  uint64_t before;
  asm volatile("mrs %0, fpcr" : "=r"(before));
  asm volatile("msr fpcr, %0" : : "r"(on ? before | kFlush : before & ~kFlush));
  return (before & kFlush) != 0;
}
#else
static bool swap_flushing(bool) { return false; }
#endif

// What each thread is to do, bool [threads], and what it did before. Thread i gets the i-th part of a parallel loop.
static Tensor flush_denormals(const Tensor& on) {
  const Check check("flush_denormals");
  if (on.dim() != 1 || on.scalar_type() != ScalarType::Bool) check.fail("expected a bool for every thread");
  const Tensor wanted = dense(on);
  Tensor before = empty(shape_of(on), ScalarType::Bool, on);
  const bool* in = data<bool>(wanted);
  bool* out = data<bool>(before);
  torch::stable::parallel_for(0, on.numel(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = swap_flushing(in[i]);
  });
  return before;
}

STABLE_TORCH_LIBRARY_IMPL(mmvae_fast, CPU, m) { m.impl("flush_denormals", TORCH_BOX(&flush_denormals)); }

}  // namespace mmvae
