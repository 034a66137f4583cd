// CUDA on the CPU, as far as this package's kernels need it: g++ compiles the .cu files against this header.
//
// The blocks of a grid run one after the other on the calling thread, the threads of a block as fibers on stacks of
// their own. A fiber runs until it has to wait for others: at __syncthreads() for its block, at a shuffle or vote for
// its warp. A barrier that not everybody reaches, or that threads of one warp or block reach at different places, is an
// error. MMVAE_EMULATOR_ORDER=reversed or shuffled starts the fibers in another order: results that depend on the order
// show a missing barrier.
//
// What it cannot show: registers, coalescing, real concurrency, and what the compiler for the GPU makes of the code.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {

[[noreturn]] inline void fail(const char* what, int line) {
  fprintf(stderr, "cuda_emulator: block %u, thread %u, line %d: %s\n", blockIdx.x, threadIdx.x, line, what);
  abort();
}

// A place on the CPU to run from: a stack and where on it to go on.
#if defined(__x86_64__)
struct Context {
  void* stack_pointer;
};
// Saves the callee-saved registers on the stack of the one that leaves, takes those of the one that comes.
__attribute__((naked, noinline, used)) static void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
static void switch_context(Context& from, Context& to) { switch_stacks(&from.stack_pointer, to.stack_pointer); }
static void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + size - 64);  // the stack pointer at entry is 16n + 8
  *--top = nullptr;                                          // nowhere to return to
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
struct Context {
  ucontext_t of_system;
};
static void switch_context(Context& from, Context& to) { swapcontext(&from.of_system, &to.of_system); }
static void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.of_system);
  context.of_system.uc_stack.ss_sp = stack;
  context.of_system.uc_stack.ss_size = size;
  makecontext(&context.of_system, entry, 0);
}
#endif

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 << 10;

struct Barrier {
  unsigned arrived = 0;
  int line = 0;  // where the first to arrive waits
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  bool done = false, waits = false;
  unsigned exchanges = 0;  // shuffles and votes so far: they use two slots in turn
};

// One launch: its kernel, and the block that is running.
struct Grid {
  std::function<void()> kernel;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier block;
  std::vector<std::array<uint64_t, 2>> slots;  // what each lane hands to its warp
  Context scheduler;
  unsigned current = 0;
};

inline thread_local Grid* grid = nullptr;
inline thread_local std::vector<char*> stacks;

inline void enter() {
  grid->kernel();
  Fiber& self = grid->fibers[grid->current];
  self.done = true;
  switch_context(self.context, grid->scheduler);
  abort();
}

// Waits until all of [first, first + count) have come here.
inline void wait(Barrier& barrier, unsigned first, unsigned count, int line) {
  Grid& g = *grid;
  if (barrier.arrived == 0) barrier.line = line;
  if (barrier.line != line) fail("threads wait at different places for one another", line);
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    for (unsigned t = first; t < first + count; ++t) g.fibers[t].waits = false;
    return;
  }
  Fiber& self = g.fibers[g.current];
  self.waits = true;
  switch_context(self.context, g.scheduler);
}

inline unsigned lanes_of(unsigned warp) {
  return std::min<unsigned>(kWarp, static_cast<unsigned>(grid->fibers.size()) - warp * kWarp);
}

// Hands `mine` to the warp; what the given lane handed over.
template <class T, class Source>
T exchange(unsigned mask, T mine, int line, Source lane_of) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
  Grid& g = *grid;
  const unsigned me = g.current, warp = me / kWarp, first = warp * kWarp, lanes = lanes_of(warp);
  if (mask != 0xFFFFFFFFu) fail("only whole warps are emulated", line);
  const unsigned turn = g.fibers[me].exchanges++ & 1;
  memcpy(&g.slots[me][turn], &mine, sizeof(T));
  wait(g.warps[warp], first, lanes, line);
  const unsigned lane = lane_of(me % kWarp);
  if (lane >= lanes) return mine;
  T theirs;
  memcpy(&theirs, &g.slots[first + lane][turn], sizeof(T));
  return theirs;
}

// In what order the fibers of a block start and go on.
inline std::vector<unsigned> order_of(unsigned threads, unsigned block) {
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; ++t) order[t] = t;
  const char* asked = getenv("MMVAE_EMULATOR_ORDER");
  if (asked != nullptr && strcmp(asked, "reversed") == 0) std::reverse(order.begin(), order.end());
  if (asked != nullptr && strcmp(asked, "shuffled") == 0) std::shuffle(order.begin(), order.end(), std::mt19937(block));
  return order;
}

inline void run_block(Grid& g, unsigned threads) {
  const std::vector<unsigned> order = order_of(threads, blockIdx.x);
  for (unsigned t = 0; t < threads; ++t) {
    g.fibers[t] = Fiber{};
    g.fibers[t].stack = stacks[t];
    prepare(g.fibers[t].context, stacks[t], kStack, enter);
  }
  for (unsigned left = threads; left > 0;) {
    bool progress = false;
    for (const unsigned t : order) {
      Fiber& fiber = g.fibers[t];
      if (fiber.done || fiber.waits) continue;
      progress = true;
      g.current = t;
      threadIdx.x = t;
      switch_context(g.scheduler, fiber.context);
      if (fiber.done) --left;
    }
    if (!progress) fail("a barrier that not all threads reach", g.block.arrived > 0 ? g.block.line : g.warps[0].line);
  }
}

template <class Kernel>
void run(unsigned blocks, unsigned threads, Kernel kernel) {
  while (stacks.size() < threads) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for stacks", __LINE__);
    stacks.push_back(static_cast<char*>(stack));
  }
  Grid g;
  g.kernel = kernel;
  g.fibers.resize(threads);
  g.warps.resize((threads + kWarp - 1) / kWarp);
  g.slots.resize(threads);
  grid = &g;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(g, threads);
  grid = nullptr;
}

}  // namespace cuda_emulator

inline void __syncthreads(int line = __builtin_LINE()) {
  cuda_emulator::Grid& g = *cuda_emulator::grid;
  cuda_emulator::wait(g.block, 0, static_cast<unsigned>(g.fibers.size()), line);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, int line = __builtin_LINE()) {
  cuda_emulator::exchange(mask, 0, line, [](unsigned lane) { return lane; });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, int line = __builtin_LINE()) {
  (void)width;
  return cuda_emulator::exchange(mask, value, line, [=](unsigned lane) { return lane ^ lane_mask; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return cuda_emulator::exchange(mask, value, line, [=](unsigned lane) {
    return lane % width + delta < static_cast<unsigned>(width) ? lane + delta : lane;
  });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  return cuda_emulator::exchange(mask, value, line,
                                 [=](unsigned lane) { return lane / width * width + unsigned(source) % width; });
}
inline unsigned __ballot_sync(unsigned mask, bool mine, int line = __builtin_LINE()) {
  unsigned votes = mine ? 1u << (threadIdx.x % 32) : 0u;
  for (int offset = 1; offset < 32; offset *= 2)
    votes |= cuda_emulator::exchange(mask, votes, line, [=](unsigned lane) { return lane ^ offset; });
  return votes;
}
inline int __any_sync(unsigned mask, bool mine, int line = __builtin_LINE()) {
  return __ballot_sync(mask, mine, line) != 0;
}
inline int __all_sync(unsigned mask, bool mine, int line = __builtin_LINE()) {
  return __ballot_sync(mask, !mine, line) == 0;
}

// Shared memory: once for all threads, since a grid runs on one of the CPU's.
#define __shared__ static thread_local

// What CUDA's mathematics has beyond <math.h>.
inline void sincospi(double x, double* sin_out, double* cos_out) {
  const double r = x - 2 * nearbyint(x / 2);  // exact, in [-1, 1]
  *sin_out = sin(M_PI * r);
  *cos_out = cos(M_PI * r);
}
inline void sincospif(float x, float* sin_out, float* cos_out) {
  double s, c;
  sincospi(x, &s, &c);
  *sin_out = static_cast<float>(s);
  *cos_out = static_cast<float>(c);
}
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
