// The module deocc._C: kernels for NumPy arrays, and how it was built. Importing it registers the torch kernels, which
// are linked into it. The only file that includes pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "build_info.h"
#include "composite.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

void check(bool fits, const char* message) {
  if (!fits) throw py::value_error(message);
}

Bytes composite_uint8(const Bytes& image, const Bytes& fill, const Bytes& occlusion) {
  check(image.ndim() == 3 && image.shape(2) == 3, "composite_uint8: image must have shape (H, W, 3)");
  check(occlusion.ndim() == 2, "composite_uint8: occlusion must have shape (H, W)");
  for (const int axis : {0, 1, 2}) {
    check(fill.ndim() == 3 && fill.shape(axis) == image.shape(axis),
          "composite_uint8: fill must have the image's shape");
    check(axis == 2 || occlusion.shape(axis) == image.shape(axis),
          "composite_uint8: occlusion must have the image's height and width");
  }
  Bytes out({image.shape(0), image.shape(1), image.shape(2)});
  const uint8_t *i = image.data(), *f = fill.data(), *o = occlusion.data();
  uint8_t* to = out.mutable_data();
  const int64_t pixels = occlusion.size();
  const py::gil_scoped_release unlocked;
  deocc::composite_uint8(i, f, o, to, pixels);
  return out;
}

py::dict build_info() {
  namespace build = deocc::build;
  py::dict info;
  info["mode"] = build::kMode;
  info["compiler"] = build::kCompiler;
  info["flags"] = build::kFlags;
  info["cuda"] = build::kCuda;
  info["cuda_arch"] = build::kCudaArch;
  info["sanitizer"] = build::kSanitizer;
  info["torch"] = build::kTorch;
  info["no_cpu"] = "";
  info["no_cuda"] = build::kNoCuda;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("composite_uint8", &composite_uint8, py::arg("image").noconvert(), py::arg("fill").noconvert(),
        py::arg("occlusion").noconvert());
  m.def("build_info", &build_info);
}
