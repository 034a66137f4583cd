// Chooses the instruction set once, at the first call.
#include <stdlib.h>
#include <string.h>

#include "../kernels.h"

namespace mmvae {

namespace baseline {
extern const Kernels kKernels;
}
#ifdef MMVAE_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

static const Kernels& choose() {
#ifdef MMVAE_X86
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const char* asked = getenv("ATEN_CPU_CAPABILITY");
  const bool cap_default = asked != nullptr && strcmp(asked, "default") == 0;
  const bool cap_avx2 = asked != nullptr && strcmp(asked, "avx2") == 0;
  if (has_avx512 && !cap_default && !cap_avx2) return avx512::kKernels;
  if (has_avx2 && !cap_default) return avx2::kKernels;
#endif
  return baseline::kKernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace mmvae
