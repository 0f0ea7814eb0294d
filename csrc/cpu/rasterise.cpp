#include "../rasterise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace deocc {
namespace {

struct Point {
  int64_t x, y;
};

// Positive to one side of the line through a and b, and twice the area of the triangle that c makes with them.
int64_t side(Point a, Point b, Point c) { return (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x); }

// How far the value of side(a, b, .) must be above 0 for a pixel to belong to the triangle: a pixel on an edge belongs
// to the triangle that lies below it or to its right.
int64_t least(Point a, Point b) { return b.y < a.y || (b.y == a.y && b.x > a.x) ? 0 : 1; }

Point corner(const float* vertex) {
  return {std::llrint(vertex[0] * double(kSubpixels)), std::llrint(vertex[1] * double(kSubpixels))};
}

int64_t first_pixel(int64_t a, int64_t b, int64_t c) {
  return std::max<int64_t>((std::min({a, b, c}) + kSubpixels - 1) >> 8, 0);
}

int64_t last_pixel(int64_t a, int64_t b, int64_t c, int64_t size) {
  return std::min(std::max({a, b, c}) >> 8, size - 1);
}

static_assert(kSubpixels == 1 << 8);

}  // namespace

void rasterise(const Mesh& mesh, float* field, bool* covered, int64_t height, int64_t width) {
  const int64_t pixels = height * width;
  std::fill_n(field, mesh.channels * pixels, 0.0f);
  std::vector<double> nearest(pixels, std::numeric_limits<double>::infinity());
  for (int64_t t = 0; t < mesh.triangle_count; ++t) {
    const int64_t i0 = mesh.triangles[3 * t], i1 = mesh.triangles[3 * t + 1], i2 = mesh.triangles[3 * t + 2];
    const float *v0 = mesh.vertices + 3 * i0, *v1 = mesh.vertices + 3 * i1, *v2 = mesh.vertices + 3 * i2;
    const Point p0 = corner(v0), p1 = corner(v1), p2 = corner(v2);
    const int64_t left = first_pixel(p0.x, p1.x, p2.x), right = last_pixel(p0.x, p1.x, p2.x, width);
    const int64_t top = first_pixel(p0.y, p1.y, p2.y), bottom = last_pixel(p0.y, p1.y, p2.y, height);
    if (left > right || top > bottom) continue;
    const int64_t area = side(p0, p2, p1);
    if (area <= 0) continue;
    // Each corner's weight is the area opposite to it; the edges run so that all three are positive inside.
    const int64_t least0 = least(p2, p1), least1 = least(p0, p2), least2 = least(p1, p0);
    const int64_t step0 = (p2.y - p1.y) * kSubpixels, step1 = (p0.y - p2.y) * kSubpixels,
                  step2 = (p1.y - p0.y) * kSubpixels;
    for (int64_t y = top; y <= bottom; ++y) {
      const Point at{left * kSubpixels, y * kSubpixels};
      int64_t side0 = side(p2, p1, at), side1 = side(p0, p2, at), side2 = side(p1, p0, at);
      for (int64_t x = left; x <= right; ++x, side0 += step0, side1 += step1, side2 += step2) {
        if (side0 < least0 || side1 < least1 || side2 < least2) continue;
        const double weight1 = double(side1) / double(area), weight2 = double(side2) / double(area);
        const auto mixed = [&](double a0, double a1, double a2) {
          return a0 + weight1 * (a1 - a0) + weight2 * (a2 - a0);
        };
        const int64_t pixel = y * width + x;
        const double depth = mixed(v0[2], v1[2], v2[2]);
        if (depth >= nearest[pixel]) continue;
        nearest[pixel] = depth;
        for (int64_t c = 0; c < mesh.channels; ++c) {
          const float* of = mesh.attributes + c;
          field[c * pixels + pixel] =
              float(mixed(of[i0 * mesh.channels], of[i1 * mesh.channels], of[i2 * mesh.channels]));
        }
      }
    }
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel) covered[pixel] = std::isfinite(nearest[pixel]);
}

}  // namespace deocc
