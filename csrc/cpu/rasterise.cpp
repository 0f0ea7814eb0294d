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

// What is nearest at a pixel: weights are those of the triangle's second and third corner.
struct Seen {
  double depth = std::numeric_limits<double>::infinity();
  int64_t triangle = -1;
  double second, third;
};

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
  std::vector<Seen> picture(height * width);
  for (int64_t t = 0; t < mesh.triangle_count; ++t) {
    const int32_t* index = mesh.triangles + 3 * t;
    const float *v0 = mesh.vertices + 3 * int64_t(index[0]), *v1 = mesh.vertices + 3 * int64_t(index[1]),
                *v2 = mesh.vertices + 3 * int64_t(index[2]);
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
    const double depth = v0[2], depth1 = double(v1[2]) - depth, depth2 = double(v2[2]) - depth;
    for (int64_t y = top; y <= bottom; ++y) {
      const Point at{left * kSubpixels, y * kSubpixels};
      int64_t side0 = side(p2, p1, at), side1 = side(p0, p2, at), side2 = side(p1, p0, at);
      Seen* seen = picture.data() + y * width + left;
      for (int64_t x = left; x <= right; ++x, ++seen, side0 += step0, side1 += step1, side2 += step2) {
        if (side0 < least0 || side1 < least1 || side2 < least2) continue;
        const double second = double(side1) / double(area), third = double(side2) / double(area);
        const double here = depth + second * depth1 + third * depth2;
        if (here < seen->depth) *seen = {here, t, second, third};
      }
    }
  }
  for (int64_t pixel = 0; pixel < height * width; ++pixel) {
    const Seen& seen = picture[pixel];
    covered[pixel] = seen.triangle >= 0;
    for (int64_t c = 0; c < mesh.channels; ++c) {
      float value = 0;
      if (covered[pixel]) {
        const int32_t* index = mesh.triangles + 3 * seen.triangle;
        const auto of = [&](int k) { return double(mesh.attributes[index[k] * mesh.channels + c]); };
        value = float(of(0) + seen.second * (of(1) - of(0)) + seen.third * (of(2) - of(0)));
      }
      field[c * height * width + pixel] = value;
    }
  }
}

}  // namespace deocc
