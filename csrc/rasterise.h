// rasterise: what a mesh's vertices carry, at every pixel of a picture of it
//
//   vertices    (V, 3): x, y in pixels, where the first pixel's centre is (0, 0), and depth; the smaller is nearer
//   triangles   (T, 3): numbers of vertices
//   attributes  (V, C)
//   field       (C, H, W): attributes at each pixel's centre, linear within a triangle; 0 where there is none
//   covered     (H, W): whether there is a triangle
//
// Drawn is a triangle whose corners run counter-clockwise as one sees them (y points down). Corners are rounded to
// 1/256 pixel and compared as integers, so that of two triangles on both sides of an edge exactly one has each pixel
// on it. Where several lie, the nearest is seen, and of equally near ones the first.
#pragma once

#include <cstdint>

namespace deocc {

constexpr int64_t kSubpixels = 256;

struct Mesh {
  const float* vertices;
  const int32_t* triangles;
  const float* attributes;
  int64_t triangle_count, channels;
};

// Coordinates are finite and less than 2^20 pixels from the origin, and every index is a vertex's: deocc.ops looks.
void rasterise(const Mesh& mesh, float* field, bool* covered, int64_t height, int64_t width);

}  // namespace deocc
