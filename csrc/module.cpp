// The module deocc._C: kernels for NumPy arrays, and how it was built. Importing it registers the torch kernels, which
// are linked into it. The only file that includes pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "build_info.h"
#include "composite.h"
#include "rasterise.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Bytes = Array<uint8_t>;

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

py::tuple rasterise(const Array<float>& vertices, const Array<int32_t>& triangles, const Array<float>& attributes,
                    int64_t height, int64_t width) {
  check(vertices.ndim() == 2 && vertices.shape(1) == 3, "rasterise: vertices must have shape (V, 3)");
  check(triangles.ndim() == 2 && triangles.shape(1) == 3, "rasterise: triangles must have shape (T, 3)");
  check(attributes.ndim() == 2 && attributes.shape(0) == vertices.shape(0),
        "rasterise: attributes must have shape (V, C)");
  const int64_t channels = attributes.shape(1);
  Array<float> field({channels, height, width});
  Array<bool> covered({height, width});
  const deocc::Mesh mesh{vertices.data(), triangles.data(), attributes.data(), triangles.shape(0), channels};
  float* to = field.mutable_data();
  bool* where = covered.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    deocc::rasterise(mesh, to, where, height, width);
  }
  return py::make_tuple(field, covered);
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
  m.def("rasterise", &rasterise, py::arg("vertices").noconvert(), py::arg("triangles").noconvert(),
        py::arg("attributes").noconvert(), py::arg("height"), py::arg("width"));
  m.def("build_info", &build_info);
}
