// mmvae_fast._native: the kernels' noise on NumPy arrays, and what this build is. No torch inside.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/kernels.h"

namespace py = pybind11;

namespace {

template <class T, class Kernel>
py::array normals(Kernel kernel, const mmvae::Normals& args, bool with_samples) {
  std::vector<py::ssize_t> shape{args.rows, args.dim};
  if (with_samples) shape.insert(shape.begin(), args.samples);
  py::array_t<T> out(shape);
  T* data = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    kernel(args, data, int64_t{0}, args.rows);
  }
  return out;
}

// A whole number within [low, high]; a clear error for anything else.
int64_t whole(const char* name, const py::object& value, int64_t low, int64_t high) {
  const std::string what = std::string("philox_normal: ") + name + " is " + py::repr(value).cast<std::string>();
  if (!PyIndex_Check(value.ptr())) throw py::type_error(what + ", expected an int");
  const py::int_ number = py::reinterpret_steal<py::int_>(PyNumber_Index(value.ptr()));
  if (number < py::int_(low) || number > py::int_(high))
    throw std::invalid_argument(what + ", expected " + std::to_string(low) + " to " + std::to_string(high));
  return number.cast<int64_t>();
}

// The 64 bits of a seed given as a signed or unsigned number.
uint64_t seed_bits(const py::object& seed) {
  const py::int_ number = PyIndex_Check(seed.ptr()) ? py::reinterpret_steal<py::int_>(PyNumber_Index(seed.ptr()))
                                                    : throw py::type_error("philox_normal: seed is not an int");
  if (number < py::int_(INT64_MIN) || number > py::int_(UINT64_MAX))
    throw std::invalid_argument("philox_normal: seed is " + py::repr(seed).cast<std::string>() + ", expected 64 bits");
  return (number & py::int_(UINT64_MAX)).cast<uint64_t>();  // two's complement
}

py::array philox_normal(const py::object& seed, const py::object& rows, const py::object& dim,
                        const py::object& n_samples, const py::object& stream, const std::string& dtype) {
  constexpr int64_t words = UINT32_MAX;  // counters are 32 bits wide
  const int64_t samples = n_samples.is_none() ? 1 : whole("n_samples", n_samples, 0, words);
  const mmvae::Normals args{seed_bits(seed), whole("rows", rows, 0, words), whole("dim", dim, 0, 4 * words), samples,
                            static_cast<uint32_t>(whole("stream", stream, 0, words))};
  if (dtype == "float32") return normals<float>(mmvae::kernels().normals_f32, args, !n_samples.is_none());
  if (dtype == "float64") return normals<double>(mmvae::kernels().normals_f64, args, !n_samples.is_none());
  throw std::invalid_argument("philox_normal: dtype is '" + dtype + "', expected 'float32' or 'float64'");
}

py::dict build_info() {
  py::dict info;
  info["version"] = MMVAE_FAST_VERSION;
  info["compiler"] = MMVAE_COMPILER;
  info["built_with_torch"] = MMVAE_TORCH_VERSION;
  info["minimum_torch"] = MMVAE_TORCH_TARGET;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
#ifdef MMVAE_X86
  info["instruction_sets"] = py::make_tuple("DEFAULT", "AVX2", "AVX512");
#else
  info["instruction_sets"] = py::make_tuple("DEFAULT");
#endif
#ifdef MMVAE_CUDA_VERSION  // of the toolkit _C_cuda was built with, and for which devices in CMake's words
  info["cuda"] = MMVAE_CUDA_VERSION;
  info["cuda_architectures"] = MMVAE_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "mmvae_fast kernels on NumPy arrays, without torch.";
  m.def("philox_normal", &philox_normal, py::arg("seed"), py::arg("rows"), py::arg("dim"),
        py::arg("n_samples") = py::none(), py::arg("stream") = 0, py::kw_only(), py::arg("dtype") = "float32",
        "Standard normals [rows, dim] or [n_samples, rows, dim]: Philox4x32-10 keyed by the 64-bit seed, counter "
        "(d // 4, row, sample, stream), Box-Muller.");
  m.def("build_info", &build_info, "What this build was made of.");
  m.def(
      "cpu_capability", [] { return std::string(mmvae::kernels().capability); },
      "The instruction set in use: DEFAULT, AVX2 or AVX512 (ATEN_CPU_CAPABILITY can lower it).");
}
