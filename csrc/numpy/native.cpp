// mmvae_fast._native: the kernels' noise on NumPy arrays, and what this build is. No torch inside.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/kernels.h"

namespace py = pybind11;

namespace {

template <class T>
py::array normals(const mmvae::Normals& args, bool with_samples) {
  std::vector<py::ssize_t> shape{args.rows, args.dim};
  if (with_samples) shape.insert(shape.begin(), args.samples);
  py::array_t<T> out(shape);
  T* data = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    mmvae::table<T>().normals(args, data, 0, args.rows);
  }
  return out;
}

py::array philox_normal(const py::int_& seed, int64_t rows, int64_t dim, const py::object& n_samples, int64_t stream,
                        const std::string& dtype) {
  const auto not_negative = [](const char* name, int64_t value) {
    if (value < 0)
      throw std::invalid_argument(std::string("philox_normal: ") + name + " is " + std::to_string(value) +
                                  ", expected 0 or more");
  };
  not_negative("rows", rows);
  not_negative("dim", dim);
  not_negative("stream", stream);
  const int64_t samples = n_samples.is_none() ? 1 : n_samples.cast<int64_t>();
  not_negative("n_samples", samples);
  // two's complement of any 64-bit seed, signed or not
  const uint64_t bits = (seed & py::int_(py::cast(UINT64_MAX))).cast<uint64_t>();
  const mmvae::Normals args{bits, rows, dim, samples, static_cast<uint32_t>(stream)};
  if (dtype == "float32") return normals<float>(args, !n_samples.is_none());
  if (dtype == "float64") return normals<double>(args, !n_samples.is_none());
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
  info["cuda"] = py::none();
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
