// A row of queries at a time: its scores against all keys are a matrix (L, w), key by key, which lies in the cache with
// those of the few neighbouring rows that the sums along diagonals need. No L x L matrix is ever written. Within a row
// the work goes by rows of keys, w keys each: sums over columns stay inside such a w x w tile.
//
// Images of bfloat16 are multiplied as such where the processor can, words of two channels, places or queries at a time;
// so are the weights that patches are mixed with, after rounding. The gradient by the scores, in which large terms
// cancel, is multiplied in float.
#include "../contextual_attention.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dots.h"
#include "exponential.h"

namespace deocc {
namespace {

constexpr int64_t kAlign = 16;       // queries of a row, and channels, are padded to a multiple of this
constexpr int64_t kDepth = 128;      // keys in one matrix product
constexpr int64_t kQueryRows = 4;    // rows of queries that are multiplied together, at most

int64_t padded(int64_t count) { return (count + kAlign - 1) / kAlign * kAlign; }

// All working memory of a task in one block: the allocator keeps a block of a few MB, and gives back many of them.
template <class T>
class Arena {
 public:
  void want(T*& where, int64_t count) {
    wanted_.push_back({&where, total_});
    total_ += padded(count);
  }

  // Nothing is set to 0.
  void allocate() {
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, total_ * sizeof(T))));
    if (!memory_) throw std::bad_alloc();
    for (const auto& [where, offset] : wanted_) *where = memory_.get() + offset;
  }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::vector<std::pair<T**, int64_t>> wanted_;
  int64_t total_ = 0;
  std::unique_ptr<T[], Free> memory_;
};

// One sample: its elements may lie in any order.
template <class S>
struct Image {
  S* data;
  int64_t channel, row, column;

  static Image of(const Tensor& tensor, S* data, int64_t sample) {
    return {data + sample * tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
  }
};

struct Settings {
  AttentionSizes sizes;
  double scale;
  bool fuse;

  int64_t wide() const { return padded(sizes.columns); }        // distance between two keys
  int64_t row_size() const { return sizes.keys * wide(); }      // scores of a row of queries
  int64_t channels() const { return padded(sizes.channels); }
  // Size of a matrix in panels, with a column for so many channels.
  int64_t matrix(int64_t rows, int64_t each = 1) const {
    return (channels() / each + kPanel - 1) / kPanel * kPanel * rows;
  }
  int64_t subpixels() const { return sizes.rate * sizes.rate; }
  // Which of the four directions of patch_side the pixel needs.
  int64_t side(int64_t subpixel) const {
    const int64_t y = subpixel / sizes.rate, x = subpixel % sizes.rate;
    return (patch_side(y, sizes.rate) > 0 ? 2 : 0) + (patch_side(x, sizes.rate) > 0 ? 1 : 0);
  }
};

// Calls body(vector, width) with a width the compiler knows where it is a common one: loops over it are unrolled.
template <class T, class Body>
void by_row(int64_t width, const Body& body) {
  by_width<T>([&](auto vector) DEOCC_BODY {
    if (width == 16) {
      body(vector, std::integral_constant<int, 16>());
    } else if (width == 32) {
      body(vector, std::integral_constant<int, 32>());
    } else if (width == 64) {
      body(vector, std::integral_constant<int, 64>());
    } else {
      body(vector, width);
    }
  });
}

// ---- Steps on `keys` rows of `wide` queries ----

// to = (a + b + c) * factor[key]; without factor, of 1. `pitch` is the distance between keys in `to`.
template <class T>
void add_three(const T* a, const T* b, const T* c, const T* factor, T* to, int64_t pitch, int64_t keys, int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    const T *__restrict p = a, *__restrict q = b, *__restrict r = c;
    T* __restrict out = to;
    for (int64_t k = 0; k < keys; ++k) {
      const T f = factor ? factor[k] : T(1);
      for (int64_t x = 0; x < width; x += V::lanes) {
        V::store(out + x, (V::load(p + x) + V::load(q + x) + V::load(r + x)) * f);
      }
      p += width, q += width, r += width, out += pitch;
    }
  });
}

// For the cells before one: how many of them have a part in the T of each side, 2 (sy > 0) + (sx > 0), and how many are
// compared with queries. Where a cell and its neighbours on a side are all invalid, T is 0, and a cell whose scores
// reach no valid one is not compared. Matrices have rows for the others alone, one after the other: at their places.
struct Places {
  int32_t of[5];
};
constexpr int kSides = 4, kCompared = 4;

// Whether the cell has a place itself.
DEOCC_INLINE bool has(const Places* cell, int side) { return cell[1].of[side] > cell[0].of[side]; }

// A tile's rows at the places of a row of keys, minus those of `base`. The tile's first row, zeros, stands for the keys
// that have none.
template <class T>
struct PlacedRows {
  const T* tile;
  int64_t pitch;
  const Places *places, *base;
  int side;
  int64_t keys;

  const T* operator()(int64_t k) const {
    if (k < 0 || k >= keys || !has(places + k, side)) return tile;
    return tile + (1 + places[k].of[side] - base->of[side]) * pitch;
  }
};

// to(k)[x] = from(k - 1)[x - 1] + from(k)[x] + from(k + 1)[x + 1], but where to(k) is null.
template <class T, class From, class To>
void add_diagonal(const From& from, const To& to, int64_t keys, int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    for (int64_t k = 0; k < keys; ++k) {
      T* __restrict out = to(k);
      if (!out) continue;
      const T *__restrict last = from(k - 1) - 1, *__restrict here = from(k), *__restrict next = from(k + 1) + 1;
      for (int64_t x = 0; x < width; x += V::lanes) {
        V::store(out + x, V::load(last + x) + V::load(here + x) + V::load(next + x));
      }
    }
  });
}

// The same for rows `pitch` and `wide` apart.
template <class T>
void add_diagonal(const T* from, int64_t pitch, T* to, int64_t keys, int64_t wide) {
  add_diagonal<T>([=](int64_t k) { return from + k * pitch; }, [=](int64_t k) { return to + k * wide; }, keys, wide);
}

constexpr double kLowest = -1e38;

// Keys of one row of keys.
struct Chosen {
  const int32_t* columns;
  int64_t count;
};

// Exponentials of the valid keys in one row of keys, relative to their maximum, which each row of keys has for itself:
// so there is no second pass over all keys. Writes maximum[x] and sum[x] too, and over the scores.
template <class T>
void exponentials(T* scores, const Chosen& valid, T scale, T* to, T* maximum, T* sum, int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    using Vec = typename V::type;
    for (int64_t x = 0; x < width; x += V::lanes) {
      Vec most = Vec{} + T(kLowest), other = most, total{};
      T* __restrict in = scores + x;
      for (int64_t i = 0; i < valid.count; ++i) {
        const Vec logit = V::load(in + valid.columns[i] * width) * scale;
        V::store(in + i * width, logit);
        const Vec larger = logit > most ? logit : most;
        most = other, other = larger;  // two chains
      }
      most = other > most ? other : most;
      T* __restrict out = to + x;
      for (int64_t i = 0; i < valid.count; ++i) {
        const Vec e = exponential<V>(V::load(in + i * width) - most);
        total += e;
        V::store(out + valid.columns[i] * width, e);
      }
      V::store(maximum + x, most);
      V::store(sum + x, total);
    }
  });
}

// The numerators of three rows of queries, before, at and after a row, at the row of keys that each is compared with,
// and what to multiply them with, which begins and ends with zeros.
template <class T>
struct Attended {
  const T *before, *at, *after;
  const T *factor_before, *factor_at, *factor_after;
};

// The four T of a row of keys: `to` + side * size, at the keys' places minus `base`. Up to one row more is written.
template <class T>
void mix(const Attended<T>& e, const Places* places, const Places& base, T* to, int64_t size, int64_t keys,
         int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    using Vec = typename V::type;
    for (int64_t x = 0; x < width; x += V::lanes) {
      const Vec f = V::load(e.factor_at + x), fl = V::load(e.factor_at + x - 1), fr = V::load(e.factor_at + x + 1);
      const Vec b = V::load(e.factor_before + x), bl = V::load(e.factor_before + x - 1),
                br = V::load(e.factor_before + x + 1);
      const Vec a = V::load(e.factor_after + x), al = V::load(e.factor_after + x - 1),
                ar = V::load(e.factor_after + x + 1);
      const auto at_key = [&](int64_t k, auto left, auto right) DEOCC_BODY {
        if (std::memcmp(places[k].of, places[k + 1].of, sizeof(int32_t) * kSides) == 0) return;
        const int64_t here = k * width + x;
        const T *__restrict p = e.at + here, *__restrict q = e.before + here, *__restrict r = e.after + here;
        const Vec p0 = V::load(p) * f, q0 = V::load(q) * b, r0 = V::load(r) * a;
        Vec pl = p0, pr = p0, ql = q0, qr = q0, rl = r0, rr = r0;
        if constexpr (left.value) {
          pl += V::load(p - width - 1) * fl;
          ql += V::load(q - width - 1) * bl;
          rl += V::load(r - width - 1) * al;
        }
        if constexpr (right.value) {
          pr += V::load(p + width + 1) * fr;
          qr += V::load(q + width + 1) * br;
          rr += V::load(r + width + 1) * ar;
        }
        const auto out = [&](int side) DEOCC_BODY {
          return to + side * size + (places[k].of[side] - base.of[side]) * width + x;
        };
        V::store(out(0), pl + ql);
        V::store(out(1), pr + qr);
        V::store(out(2), pl + rl);
        V::store(out(3), pr + rr);
      };
      const std::true_type yes;
      const std::false_type no;
      if (keys == 1) {
        at_key(0, no, no);
        continue;
      }
      at_key(0, no, yes);
      for (int64_t k = 1; k + 1 < keys; ++k) at_key(k, yes, yes);
      at_key(keys - 1, yes, no);
    }
  });
}

// to = the gradients by the numerators of a row of keys and by their neighbours along the row: minus holds those of T
// with sx = -1, plus with 1.
template <class T>
void unmix(const PlacedRows<T>& minus, const PlacedRows<T>& plus, T* to, int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    T* __restrict out = to;
    for (int64_t k = 0; k < minus.keys; ++k, out += width) {
      const T *__restrict m = minus(k), *__restrict next = minus(k + 1) + 1;
      const T *__restrict p = plus(k), *__restrict last = plus(k - 1) - 1;
      for (int64_t x = 0; x < width; x += V::lanes) {
        V::store(out + x, V::load(m + x) + V::load(next + x) + V::load(p + x) + V::load(last + x));
      }
    }
  });
}

// to = a + b + c + d, for valid keys, and sum[x] += the sum over them of attention times that.
template <class T>
void gather_attention_gradient(const T* a, const T* b, const T* c, const T* d, const T* numerators, const T* factor,
                               T* to, T* sum, const Chosen& valid, int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    for (int64_t x = 0; x < width; x += V::lanes) {
      typename V::type total{};
      const typename V::type f = V::load(factor + x);
      for (int64_t i = 0; i < valid.count; ++i) {
        const int64_t k = valid.columns[i] * width + x;
        const typename V::type g = V::load(a + k) + V::load(b + k) + (V::load(c + k) + V::load(d + k));
        total += V::load(numerators + k) * f * g;
        V::store(to + k, g);
      }
      V::store(sum + x, V::load(sum + x) + total);
    }
  });
}

// From the gradient by the attention, in place, to the gradient by A2: scale * attention * (gradient - sum[x]).
template <class T>
void through_softmax(T* gradient, const T* numerators, const T* factor, const T* sum, T scale, const Chosen& valid,
                     int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    for (int64_t x = 0; x < width; x += V::lanes) {
      const typename V::type f = V::load(factor + x) * scale, mean = V::load(sum + x);
      for (int64_t i = 0; i < valid.count; ++i) {
        const int64_t k = valid.columns[i] * width + x;
        V::store(gradient + k, V::load(numerators + k) * f * (V::load(gradient + k) - mean));
      }
    }
  });
}

// For keys [first, last) of a row of queries: divides the gradient by S, in place, by the norms, and adds to
// product[key] (kAlign partial sums) what it is before times S = (before + at + after) / norm. `columns` queries count.
template <class T>
void through_norm(T* gradient, const T* before, const T* at, const T* after, const T* zeros, const T* inverse,
                  T* product, int64_t first, int64_t last, int64_t keys, int64_t columns, int64_t wide) {
  by_row<T>(wide, [&](auto vector, auto width) DEOCC_BODY {
    using V = decltype(vector);
    for (int64_t k = first; k < last; ++k) {
      T* const out = gradient + k * width;
      for (int64_t x = columns; x < width; ++x) out[x] = T(0);
      const T* p = before && k >= columns ? before + (k - columns) * width : zeros;
      const T* q = at + k * width;
      const T* r = after && k + columns < keys ? after + (k + columns) * width : zeros;
      typename V::type total{};
      for (int64_t x = 0; x < width; x += V::lanes) {
        const typename V::type g = V::load(out + x) * inverse[k];
        total += g * (V::load(p + x) + V::load(q + x) + V::load(r + x));
        V::store(out + x, g);
      }
      if (product) {
        T* const sums = product + k * kAlign;
        V::store(sums, V::load(sums) + total);
      }
    }
  });
}

// ---- Between images and matrices ----

constexpr int64_t kBlock = 8;  // channels that are read together: the rows of many would crowd one set of the cache

// A row's channels lie far apart: ask for the next ones early.
template <class S>
DEOCC_INLINE void expect(const S* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
}

// to[x * step + i] = from[i * width + x] for so many lines i.
template <int64_t lines, class T>
void transpose(const T* from, int64_t width, T* to, int64_t step, int64_t count) {
  int64_t x = 0;
  if constexpr (sizeof(T) == 4) {
    using V = Vector<T, 16>;
    for (; x + 4 <= count; x += 4) {
      for (int64_t i = 0; i < lines; i += 4) {
        const T* in = from + i * width + x;
        const typename V::type a = V::load(in), b = V::load(in + width);
        const typename V::type c = V::load(in + 2 * width), d = V::load(in + 3 * width);
        const typename V::type ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        const typename V::type cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const typename V::type AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const typename V::type CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        T* out = to + x * step + i;
        V::store(out, __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
        V::store(out + step, __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
        V::store(out + 2 * step, __builtin_shufflevector(AB, CD, 0, 1, 4, 5));
        V::store(out + 3 * step, __builtin_shufflevector(AB, CD, 2, 3, 6, 7));
      }
    }
  }
  for (; x < count; ++x) {
    for (int64_t i = 0; i < lines; ++i) to[x * step + i] = from[i * width + x];
  }
}

// Pixel row `ry` of the cells in row y, times factor, kBlock channels from c on at a time: (kBlock, columns) in
// `buffer`. put(rx, c) takes each pixel of a cell from there.
template <class S, class T, class Put>
void pack_cells(const Image<const S>& image, const Settings& set, int64_t ry, int64_t y, T factor, T* buffer,
                const Put& put) {
  const int64_t rate = set.sizes.rate, columns = set.sizes.columns, channels = set.sizes.channels;
  const S* corner = image.data + (y * rate + ry) * image.row;
  const int64_t step = rate * image.column;
  for (int64_t c = 0; c < set.channels(); c += kBlock) {
    const int64_t present = std::clamp<int64_t>(channels - c, 0, kBlock);
    if (present < kBlock) std::fill_n(buffer, kBlock * columns, T(0));
    for (int64_t rx = 0; rx < rate; ++rx) {
      const S* from = corner + rx * image.column + c * image.channel;
      by_width<T>([&](auto) DEOCC_BODY {
        for (int64_t i = 0; i < present; ++i) {
          const S* __restrict row = from + i * image.channel;
          T* __restrict line = buffer + i * columns;
          if (rx == 0 && image.column == 1 && c + kBlock + i < channels) {
            expect(row + kBlock * image.channel, set.sizes.width * sizeof(S));
          }
          if (step == 2) {
            for (int64_t x = 0; x < columns; ++x) line[x] = static_cast<T>(row[2 * x]) * factor;
          } else {
            for (int64_t x = 0; x < columns; ++x) line[x] = static_cast<T>(row[x * step]) * factor;
          }
        }
      });
      put(rx, c);
    }
  }
}

// The same for one row of cells with a row for each channel: to[channel][x].
template <class S, class T>
void pack_channels(const Image<const S>& image, const Settings& set, int64_t subpixel, int64_t y, T factor, T* to) {
  const int64_t rate = set.sizes.rate, columns = set.sizes.columns, wide = set.wide();
  const S* corner = image.data + (y * rate + subpixel / rate) * image.row + subpixel % rate * image.column;
  const int64_t step = rate * image.column;
  by_width<float>([&](auto) DEOCC_BODY {
    for (int64_t c = 0; c < set.sizes.channels; ++c) {
      const S* __restrict from = corner + c * image.channel;
      T* __restrict row = to + c * wide;
      if (image.column == 1 && c + kBlock < set.sizes.channels) {
        expect(from + kBlock * image.channel, columns * step * sizeof(S));
      }
      if (step == 2) {
        for (int64_t x = 0; x < columns; ++x) row[x] = static_cast<T>(from[2 * x]) * factor;
      } else {
        for (int64_t x = 0; x < columns; ++x) row[x] = static_cast<T>(from[x * step]) * factor;
      }
    }
  });
}

// And back, all pixels of the cells in row y: from[subpixel][channel][x], times factor. Those from `pixels` on become 0.
template <class S, class T>
void unpack_channels(const T* from, const Settings& set, int64_t pixels, int64_t y, T factor, const Image<S>& image) {
  const int64_t rate = set.sizes.rate, columns = set.sizes.columns, wide = set.wide();
  const int64_t step = rate * image.column, plane = set.sizes.channels * wide;
  by_width<T>([&](auto) DEOCC_BODY {
    for (int64_t ry = 0; ry < rate; ++ry) {
      for (int64_t c = 0; c < set.sizes.channels; ++c) {
        S* __restrict to = image.data + (y * rate + ry) * image.row + c * image.channel;
        if (step == 2 && image.column == 1 && pixels >= 2 * ry + 2) {
          const T *__restrict left = from + 2 * ry * plane + c * wide, *__restrict right = left + plane;
          for (int64_t x = 0; x < columns; ++x) {
            to[2 * x] = static_cast<S>(left[x] * factor);
            to[2 * x + 1] = static_cast<S>(right[x] * factor);
          }
          continue;
        }
        for (int64_t rx = 0; rx < rate; ++rx, to += image.column) {
          const int64_t r = ry * rate + rx;
          const T* __restrict row = from + r * plane + c * wide;
          if (r < pixels) {
            for (int64_t x = 0; x < columns; ++x) to[x * step] = static_cast<S>(row[x] * factor);
          } else {
            for (int64_t x = 0; x < columns; ++x) to[x * step] = static_cast<S>(T(0));
          }
        }
      }
    }
  });
}

// Writes one pixel of the cells in row y: a row for each cell.
template <class S, class T>
void unpack_cells(const Panels<T>& from, const Settings& set, int64_t subpixel, int64_t y, const Image<S>& image) {
  const int64_t rate = set.sizes.rate, columns = set.sizes.columns, channels = set.sizes.channels;
  S* corner = image.data + (y * rate + subpixel / rate) * image.row + subpixel % rate * image.column;
  for (int64_t c = 0; c < channels; c += kBlock) {
    for (int64_t x = 0; x < columns; ++x) {
      const T* row = from.at(x, c);
      S* to = corner + x * rate * image.column + c * image.channel;
      for (int64_t i = 0; i < std::min(kBlock, channels - c); ++i) to[i * image.channel] = static_cast<S>(row[i]);
    }
  }
}

// One sample's background, ready for the products P.
template <class P>
class Keys {
 public:
  using T = typename P::Sum;
  using Word = typename P::Word;

  std::vector<Places> places;  // of every cell, and how many there are
  T* inverse;                  // 1 / norm
  T* clamped;                  // 0 where the norm is the constant 1e-4, else 1
  int64_t invalid;

  // pastes: whether by_places() will be asked for.
  template <class S>
  Keys(const Settings& set, const Image<const S>& background, const bool* occluded, bool pastes)
      : places(set.sizes.keys + 1), set_(set), n_(set.sizes) {
    constexpr bool in_words = P::size > 1;
    find_places(occluded);
    arena_.want(compared_, set.matrix(compared_count()));
    for (T** vector : {&inverse, &clamped}) arena_.want(*vector, n_.keys);
    words_.want(pasted_, set.subpixels() * set.matrix(pasted_count(), P::size));
    if (in_words) words_.want(compared_words_, set.matrix(compared_count(), P::size));
    if (in_words && pastes) words_.want(across_, set.subpixels() * set.matrix(P::words(pasted_count())));
    arena_.allocate();
    words_.allocate();
    pack(background);
    if constexpr (in_words) {
      if (pastes) pair_places();
    } else {
      compared_words_ = compared_;
      across_ = pasted_;
    }
    find_norms();
  }
  Keys(const Keys&) = delete;

  // Number of cells that are compared, or the largest number that have a part in the T of one side.
  int64_t compared_count() const { return places.back().of[kCompared]; }
  int64_t pasted_count() const { return *std::max_element(places.back().of, places.back().of + kSides); }

  // Matrices of these cells, a row for each place.
  Panels<T> like_compared(T* data) const { return {data, kPanel, compared_count() * kPanel}; }
  Panels<T> like_pasted(T* data, int64_t subpixel) const {
    return {data + subpixel * set_.matrix(pasted_count()), kPanel, pasted_count() * kPanel};
  }
  Panels<T> compared() const { return like_compared(compared_); }  // the first pixel of every cell that is compared
  // In words of channels.
  Panels<Word> compared_words() const { return {compared_words_, kPanel, compared_count() * kPanel}; }
  Panels<Word> pasted(int64_t subpixel) const {
    return {pasted_ + subpixel * set_.matrix(pasted_count(), P::size), kPanel, pasted_count() * kPanel};
  }
  // The same in words of places, a row for each word.
  Panels<Word> by_places(int64_t subpixel) const {
    const int64_t count = P::words(pasted_count());
    return {across_ + subpixel * set_.matrix(count), kPanel, count * kPanel};
  }

  Chosen valid(int64_t ky) const {
    return {valid_.data() + valid_from_[ky], valid_from_[ky + 1] - valid_from_[ky]};
  }

  PlacedRows<T> rows(const T* tile, int64_t pitch, int64_t ky, const Places& base, int side) const {
    return {tile, pitch, &places[ky * n_.columns], &base, side, n_.columns};
  }

  // Calls body(first, last, base, count) for rows [first, last) of keys that are multiplied together, with the places
  // at their beginning and the number of places, of sides [side, until) `most` at most or those of one row.
  template <class Body>
  void in_groups(int side, int until, int64_t most, const Body& body) const {
    for (int64_t first = 0, last; first < n_.rows; first = last) {
      const Places& base = places[first * n_.columns];
      Places count{}, wanted;
      for (last = first; last < n_.rows; ++last, count = wanted) {
        for (int i = 0; i < 5; ++i) wanted.of[i] = places[(last + 1) * n_.columns].of[i] - base.of[i];
        if (last > first && *std::max_element(wanted.of + side, wanted.of + until) > most) break;
      }
      body(first, last, base, count);
    }
  }

 private:
  void find_places(const bool* occluded) {
    const int64_t rows = n_.rows, columns = n_.columns, pitch = columns + 2;
    using Flags = std::vector<uint8_t>;  // of cells, with a border
    const auto at = [&](int64_t y, int64_t x) { return (y + 1) * pitch + x + 1; };
    const auto with_neighbours = [&](const Flags& flags, int64_t step) {
      Flags result(flags);
      for (size_t i = step; i + step < flags.size(); ++i) result[i] |= flags[i - step] | flags[i + step];
      return result;
    };
    Flags flags((rows + 2) * pitch), valid(flags);
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x) flags[at(y, x)] = occluded[y * n_.rate * n_.width + x * n_.rate];
    }
    flags = with_neighbours(with_neighbours(flags, 1), pitch);
    valid_from_.push_back(0);
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x) {
        if (flags[at(y, x)]) continue;
        valid[at(y, x)] = 1;
        valid_.push_back(static_cast<int32_t>(x));
      }
      valid_from_.push_back(static_cast<int64_t>(valid_.size()));
    }
    invalid = n_.keys - valid_from_.back();

    // What the scores of valid keys are made of, from the last sum to the first.
    flags = valid;
    if (set_.fuse) {
      const auto down_columns = [&](int64_t i) { return at(i % rows, i / rows); };
      const auto along_rows = [&](int64_t i) { return at(i / columns, i % columns); };
      const auto with_next = [&](const auto& place) {
        const Flags before(flags);
        for (int64_t i = 1; i < n_.keys; ++i) {
          flags[place(i)] |= before[place(i - 1)];
          flags[place(i - 1)] |= before[place(i)];
        }
      };
      with_next(down_columns);
      with_next(along_rows);
    }
    flags = with_neighbours(with_neighbours(flags, 1), pitch);
    for (int64_t k = 0; k < n_.keys; ++k) {
      const int64_t here = at(k / columns, k % columns);
      places[k + 1] = places[k];
      for (int side = 0; side < kSides; ++side) {
        const uint8_t* const pair = &valid[here + (side % 2 ? 0 : -1)];
        const int64_t down = side / 2 ? pitch : -pitch;
        places[k + 1].of[side] += pair[0] | pair[1] | pair[down] | pair[down + 1];
      }
      places[k + 1].of[kCompared] += flags[here];
    }
  }

  template <class S>
  void pack(const Image<const S>& background) {
    struct Run {
      int64_t x, place, count;
    };
    torch::stable::parallel_for(0, n_.rate * n_.rows, 4, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer(kBlock * n_.columns);
      std::vector<Word> words(kBlock / P::size * n_.columns);
      std::vector<Run> runs[5];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t y = i / n_.rate, ry = i % n_.rate;
        const Places* const row = &places[y * n_.columns];
        for (int side = 0; side < 5; ++side) {
          runs[side].clear();
          for (int64_t x = 0; x < n_.columns; ++x) {
            if (!has(row + x, side)) continue;
            if (runs[side].empty() || runs[side].back().x + runs[side].back().count < x) {
              runs[side].push_back({x, row[x].of[side], 0});
            }
            ++runs[side].back().count;
          }
        }
        pack_cells(background, set_, ry, y, T(1), buffer.data(), [&](int64_t rx, int64_t c) {
          const int64_t r = ry * n_.rate + rx;
          const Word* const from = P::pair_rows(buffer.data(), kBlock, n_.columns, words.data());
          const auto put = [&](const std::vector<Run>& cells, const Panels<Word>& to) {
            for (const Run& run : cells) {
              transpose<kBlock / P::size>(from + run.x, n_.columns, to.at(run.place, c / P::size), kPanel, run.count);
            }
          };
          put(runs[set_.side(r)], pasted(r));
          if (r > 0) return;
          for (const Run& run : runs[kCompared]) {
            transpose<kBlock>(buffer.data() + run.x, n_.columns, compared().at(run.place, c), kPanel, run.count);
          }
          if (P::size > 1) put(runs[kCompared], compared_words());
        });
      }
    });
  }

  // From words of channels to words of places; the last may be of one place.
  void pair_places() const
    requires(P::size == 2)
  {
    constexpr int64_t half = kPanel / 2;
    torch::stable::parallel_for(0, set_.subpixels(), 1, [&](int64_t begin, int64_t end) {
      by_width<float>([&](auto) DEOCC_BODY {
        const Word nothing[half] = {};
        for (int64_t r = begin; r < end; ++r) {
          const Panels<Word> from = pasted(r), to = by_places(r);
          const int64_t count = places.back().of[set_.side(r)];
          for (int64_t c = 0; c < set_.channels() / 2; c += half) {
            for (int64_t k = 0; k < count; k += 2) {
              const Word* const next = k + 1 < count ? from.at(k + 1, c) : nothing;
              pair_across(from.at(k, c), next, std::min(half, set_.channels() / 2 - c), to.at(k / 2, 2 * c));
            }
          }
        }
      });
    });
  }

  void find_norms() {
    std::vector<T> squares(n_.keys);
    by_width<T>([&](auto) DEOCC_BODY {
      for (int64_t c = 0; c < set_.channels(); c += kAlign) {
        for (int64_t k = 0; k < n_.keys; ++k) {
          if (!has(&places[k], kCompared)) continue;
          const T* __restrict from = compared().at(places[k].of[kCompared], c);
          T partial[kAlign];
          for (int64_t i = 0; i < kAlign; ++i) partial[i] = from[i] * from[i];
          for (int64_t half = kAlign / 2; half > 0; half /= 2) {
            for (int64_t i = 0; i < half; ++i) partial[i] += partial[i + half];
          }
          squares[k] += partial[0];
        }
      }
    });
    for (int64_t y = 0; y < n_.rows; ++y) {
      for (int64_t x = 0; x < n_.columns; ++x) {
        const int64_t k = y * n_.columns + x;
        T square = 0;
        for (int64_t v = std::max<int64_t>(y - 1, 0); v < std::min(y + 2, n_.rows); ++v) {
          for (int64_t u = std::max<int64_t>(x - 1, 0); u < std::min(x + 2, n_.columns); ++u) {
            square += squares[v * n_.columns + u];
          }
        }
        const T norm = std::sqrt(square);
        clamped[k] = norm < T(1e-4) ? 0 : 1;
        inverse[k] = 1 / (norm < T(1e-4) ? T(1e-4) : norm);
      }
    }
  }

  const Settings& set_;
  const AttentionSizes& n_;
  Arena<T> arena_;
  Arena<Word> words_;
  T* compared_;
  Word *compared_words_, *pasted_, *across_ = nullptr;  // of the latter two a matrix for each subpixel
  std::vector<int32_t> valid_;       // columns of the valid keys, row by row
  std::vector<int64_t> valid_from_;  // where a row of keys begins in there
};

// The latest rows of some stage, by the number of the row of queries.
template <class T>
struct Ring {
  T* data = nullptr;
  int64_t rows = 0, size = 0;
  std::vector<int64_t> held;

  // Steps read, and multiply with 0, up to a vector beyond either end of a row.
  void ask(Arena<T>& arena, int64_t rows_, int64_t size_) {
    rows = rows_, size = padded(size_) + 2 * kMargin;
    held.assign(rows, -1);
    arena.want(data, rows * size);
  }
  void clear() {
    for (int64_t i = 0; i < rows; ++i) {
      std::fill_n(data + i * size, kMargin, T(0));
      std::fill_n(data + (i + 1) * size - kMargin, kMargin, T(0));
    }
  }
  void zero() { std::fill_n(data, rows * size, T(0)); }
  T* operator[](int64_t y) const { return data + y % rows * size + kMargin; }
  // False, and y's place is taken, when y has yet to be computed.
  bool has(int64_t y) {
    if (held[y % rows] == y) return true;
    held[y % rows] = y;
    return false;
  }

  static constexpr int64_t kMargin = 32;
};

// ---- The two sums of the fuse, over whole rows of queries ----

// First: to[k][x] = v[k - 1][x - 1] + v[k][x] + v[k + 1][x + 1], where x = -1 is left[k] and x = w is right[k] (0 when
// null). fill(ky, out) writes v of a row of keys, `pitch` apart; finished(first, last) is told of keys that are done.
template <class T, class Fill, class Finished>
void diagonal_flat(const AttentionSizes& n, int64_t wide, T* buffer, const T* left, const T* right, T* to,
                   const Fill& fill, const Finished& finished) {
  const int64_t pitch = wide + kAlign, columns = n.columns;
  T* const rows = buffer + kAlign;  // two rows of keys that were, then those of this tile
  std::fill_n(buffer, 2 * pitch + kAlign, T(0));
  for (int64_t ky = 0; ky < n.rows; ++ky) {
    const int64_t k = ky * columns;
    fill(ky, rows + 2 * pitch);
    for (int64_t i = 0; i < columns; ++i) {
      T* row = rows + (i + 2) * pitch;
      row[-1] = left ? left[k + i] : T(0);
      row[columns] = right ? right[k + i] : T(0);
    }
    const int64_t skip = ky == 0;  // there is no key before the first
    add_diagonal(rows + (1 + skip) * pitch, pitch, to + (k - 1 + skip) * wide, columns - skip, wide);
    finished(k - 1 + skip, k - 1 + columns);
    std::copy(rows + columns * pitch - kAlign, rows + (columns + 2) * pitch, rows - kAlign);
  }
  std::fill_n(rows + 2 * pitch - 1, pitch, T(0));
  add_diagonal(rows + pitch, pitch, to + (n.keys - 1) * wide, 1, wide);
  finished(n.keys - 1, n.keys);
}

// Second, of one row of keys: before, at and after are the rows of queries above, at and below. A column of keys
// continues with the next one.
template <class T>
void add_down_columns(const AttentionSizes& n, int64_t wide, const T* before, const T* at, const T* after,
                      const T* zeros, int64_t ky, T* to) {
  const int64_t columns = n.columns, tile = columns * wide;
  const bool first = ky == 0, last = ky + 1 == n.rows;
  const T* above = before + (first ? (n.rows - 1) * tile - wide : (ky - 1) * tile);
  const T* below = after + (last ? wide : (ky + 1) * tile);
  const int64_t from = first ? 1 : 0, until = last ? columns - 1 : columns;  // keys that have one above, below
  for (int64_t k = 0; k < columns;) {
    const bool has_above = k >= from, has_below = k < until;
    const int64_t stop = !has_above ? from : has_below ? until : columns;
    add_three(has_above ? above + k * wide : zeros, at + ky * tile + k * wide, has_below ? below + k * wide : zeros,
              static_cast<const T*>(nullptr), to + k * wide, wide, stop - k, wide);
    k = stop;
  }
}

// to[k][x] = from[k][x - by], by is 1 or -1; 0 outside.
template <class T>
void move_queries(const AttentionSizes& n, int64_t wide, const T* from, T* to, int64_t by) {
  for (int64_t k = 0; k < n.keys; ++k, from += wide, to += wide) {
    std::fill_n(to, wide, T(0));
    for (int64_t x = std::max<int64_t>(by, 0); x < n.columns + std::min<int64_t>(by, 0); ++x) to[x] = from[x - by];
  }
}

// Scores and attention of one sample, row of queries by row of queries, computed when asked for.
template <class S, class P>
class Scores {
 public:
  using T = typename P::Sum;
  using Word = typename P::Word;

  // H of `kept` rows and E of `attended` rows are there at a time.
  Scores(const Settings& set, const Keys<P>& keys, const Image<const S>& foreground, Arena<T>& arena,
         Arena<Word>& words, int64_t kept, int64_t attended)
      : set_(set), n_(set.sizes), keys_(keys), foreground_(foreground), wide_(set.wide()), pitch_(wide_ + kAlign) {
    const int64_t size = set.row_size();
    h_.ask(arena, std::min(kept, n_.rows), size);
    edges_.ask(arena, std::min<int64_t>(kept + 2, n_.rows), 2 * n_.keys);
    if (set.fuse) {
      a1_.ask(arena, std::min<int64_t>(3, n_.rows), size);
      ends_.ask(arena, 2, size);
    }
    e_.ask(arena, std::min(attended, n_.rows), size);
    arena.want(query_, n_.channels * wide_);
    words.want(query_words_, P::words(n_.channels) * wide_);
    arena.want(tile_, (std::max(kDepth, n_.columns) + 3) * pitch_);
    arena.want(flat_, (n_.columns + 3) * pitch_);
    arena.want(left_, n_.keys);
    arena.want(right_, n_.keys);
    arena.want(zeros_, n_.columns * wide_ + 2 * kAlign);
    factor_size_ = wide_ + 2 * kAlign;
    arena.want(factors_, (e_.rows * n_.rows + 1) * factor_size_);
    arena.want(sums_, n_.rows * wide_);
  }

  // After the arena has allocated.
  void begin() {
    for (Ring<T>* ring : {&h_, &edges_, &a1_, &ends_}) ring->clear();
    e_.zero();  // where keys are invalid it stays so
    std::fill_n(query_, n_.channels * wide_, T(0));
    std::fill_n(tile_, (std::max(kDepth, n_.columns) + 3) * pitch_, T(0));
    std::fill_n(flat_, (n_.columns + 3) * pitch_, T(0));  // its padding is multiplied with 0, so it must be finite
    std::fill_n(zeros_, n_.columns * wide_ + 2 * kAlign, T(0));
    std::fill_n(factors_, (e_.rows * n_.rows + 1) * factor_size_, T(0));
  }

  // (L, wide): numerators of the attention of row y; multiply with factor(y, row of keys).
  const T* attention(int64_t y) {
    if (e_.has(y)) return e_[y];
    T* const out = e_[y];
    look_around(y);
    const int64_t tile = n_.columns * wide_;
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      scores(y, ky, flat_);
      exponentials(flat_, keys_.valid(ky), static_cast<T>(set_.scale), out + ky * tile, factor(y, ky),
                   sums_ + ky * wide_, wide_);
    }
    normalise(y);
    return out;
  }

  T* factor(int64_t y, int64_t ky) const {
    return factors_ + (y % e_.rows * n_.rows + ky) * factor_size_ + kAlign;
  }

  // The rows around row t, for mix(), at row ky of keys. The three rows must be there.
  Attended<T> attended(int64_t t, int64_t ky) const {
    const int64_t tile = n_.columns * wide_;
    const T* nothing = factors_ + e_.rows * n_.rows * factor_size_ + kAlign;
    Attended<T> near{e_[t] + ky * tile, e_[t] + ky * tile, e_[t] + ky * tile, nothing, factor(t, ky), nothing};
    if (t > 0 && ky > 0) near.before = e_[t - 1] + (ky - 1) * tile, near.factor_before = factor(t - 1, ky - 1);
    if (t + 1 < n_.rows && ky + 1 < n_.rows) {
      near.after = e_[t + 1] + (ky + 1) * tile, near.factor_after = factor(t + 1, ky + 1);
    }
    return near;
  }

  // H of the rows before, at and after y; null beyond the image.
  std::tuple<const T*, const T*, const T*> sums_of_columns(int64_t y) {
    need_rows(y - 1, y + 1);
    return {y > 0 ? h_[y - 1] : nullptr, h_[y], y + 1 < n_.rows ? h_[y + 1] : nullptr};
  }

  // The best valid key of every query in row y.
  void best(int64_t y, int64_t* found) {
    look_around(y);
    std::vector<T> highest(n_.columns);
    std::fill_n(found, n_.columns, -1);
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      scores(y, ky, flat_);
      const Chosen valid = keys_.valid(ky);
      for (int64_t i = 0; i < valid.count; ++i) {
        const int64_t kx = valid.columns[i];
        for (int64_t x = 0; x < n_.columns; ++x) {
          const T score = flat_[kx * wide_ + x];
          if (found[x] < 0 || score > highest[x]) highest[x] = score, found[x] = ky * n_.columns + kx;
        }
      }
    }
  }

 private:
  // What scores(y, ...) reads.
  void look_around(int64_t y) {
    if (!set_.fuse) return need_rows(y - 1, y + 1);
    const bool first = y == 0, last = y + 1 == n_.rows;
    if (first) before_ = end(1);  // the ends first: they pass through the ring
    if (last) after_ = end(0);
    if (!first) before_ = fused(y - 1);
    at_ = fused(y);
    if (!last) after_ = fused(y + 1);
  }

  void need_rows(int64_t first, int64_t last) {
    for (int64_t y = std::max<int64_t>(first, 0); y <= std::min(last, n_.rows - 1); ++y) sum_columns(y);
  }

  // H of row y, and of its first and last query apart: (2, L).
  void sum_columns(int64_t y) {
    const bool there = h_.has(y);
    if (edges_.has(y) && there) return;
    pack_channels(foreground_, set_, 0, y, T(1), query_);
    const Word* const query = P::pair_rows(query_, n_.channels, wide_, query_words_);
    T *const first = edges_[y], *const last = first + n_.keys;
    const Panels<Word> pixels = keys_.compared_words();
    keys_.in_groups(kCompared, kCompared + 1, kDepth, [&](int64_t from, int64_t until, const Places& base,
                                                          const Places& count) {
      T* const tile = tile_ + kAlign;  // after a row, and between columns, of zeros
      P::multiply({pixels.at(base.of[kCompared], 0), kPanel, 1, kPanel, pixels.panel}, row_major(query, wide_),
                  row_major(tile + pitch_, pitch_), count.of[kCompared], wide_, P::words(n_.channels), false);
      for (int64_t ky = from; ky < until; ++ky) {
        const int64_t k = ky * n_.columns;
        T* const out = h_[y] + k * wide_;
        add_diagonal<T>(keys_.rows(tile, pitch_, ky, base, kCompared), [&](int64_t kx) { return out + kx * wide_; },
                        n_.columns, wide_);
        for (int64_t kx = 0; kx < n_.columns; ++kx) {
          first[k + kx] = out[kx * wide_];
          last[k + kx] = out[kx * wide_ + n_.columns - 1];
        }
      }
    });
  }

  // A row of keys of S.
  void sum_rows(int64_t y, int64_t ky, T* to, int64_t pitch) {
    const int64_t tile = n_.columns * wide_;
    const T* before = y > 0 && ky > 0 ? h_[y - 1] + (ky - 1) * tile : zeros_;
    const T* after = y + 1 < n_.rows && ky + 1 < n_.rows ? h_[y + 1] + (ky + 1) * tile : zeros_;
    add_three(before, h_[y] + ky * tile, after, keys_.inverse + ky * n_.columns, to, pitch, n_.columns, wide_);
  }

  // S of the first (0) or last (1) query of row y, for all keys.
  void edge(int64_t y, int which, T* to) {
    const int64_t columns = n_.columns, keys = n_.keys;
    const T* at = edges_[y] + which * keys;
    for (int64_t k = 0; k < keys; ++k) to[k] = at[k];
    if (y > 0) {
      const T* before = edges_[y - 1] + which * keys;
      for (int64_t k = columns; k < keys; ++k) to[k] += before[k - columns];
    }
    if (y + 1 < n_.rows) {
      const T* after = edges_[y + 1] + which * keys;
      for (int64_t k = 0; k + columns < keys; ++k) to[k] += after[k + columns];
    }
    for (int64_t k = 0; k < keys; ++k) to[k] *= keys_.inverse[k];
  }

  // A1 of row y.
  const T* fused(int64_t y) {
    if (a1_.has(y)) return a1_[y];
    if (y >= 2 && edges_.held[(y - 2) % edges_.rows] != y - 2) sum_columns(y - 2);
    need_rows(y - 1, y + 2);
    const bool left = y > 0, right = y + 1 < n_.rows;
    if (left) edge(y - 1, 1, left_);
    if (right) edge(y + 1, 0, right_);
    T* const out = a1_[y];
    diagonal_flat(
        n_, wide_, flat_, left ? left_ : nullptr, right ? right_ : nullptr, out,
        [&](int64_t ky, T* to) { sum_rows(y, ky, to, pitch_); }, [](int64_t, int64_t) {});
    return out;
  }

  // What the columns of queries continue with: A1 of the first row moved to the left (0), after the last row, or of the
  // last row moved to the right (1), before the first.
  const T* end(int which) {
    T* const out = ends_[which];
    if (!ends_.has(which)) move_queries(n_, wide_, fused(which ? n_.rows - 1 : 0), out, which ? 1 : -1);
    return out;
  }

  // A row of keys of A2 (or S, without fuse), for attention().
  void scores(int64_t y, int64_t ky, T* to) {
    if (set_.fuse) {
      add_down_columns(n_, wide_, before_, at_, after_, zeros_, ky, to);
    } else {
      sum_rows(y, ky, to, wide_);
    }
  }

  // From maxima and sums for each row of keys to what its numerators are multiplied with.
  void normalise(int64_t y) {
    const T start = keys_.invalid ? T(0) : T(kLowest), invalid = static_cast<T>(keys_.invalid);
    by_width<T>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      using Vec = typename V::type;
      for (int64_t x = 0; x < wide_; x += V::lanes) {
        Vec most = Vec{} + start;
        for (int64_t ky = 0; ky < n_.rows; ++ky) {
          const Vec maximum = V::load(factor(y, ky) + x);
          most = maximum > most ? maximum : most;
        }
        Vec total = exponential<V>(-most) * invalid;
        for (int64_t ky = 0; ky < n_.rows; ++ky) {
          total += exponential<V>(V::load(factor(y, ky) + x) - most) * V::load(sums_ + ky * wide_ + x);
        }
        for (int64_t ky = 0; ky < n_.rows; ++ky) {
          T* at = factor(y, ky) + x;
          V::store(at, exponential<V>(V::load(at) - most) / total);
        }
      }
    });
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      std::fill_n(factor(y, ky) + n_.columns, wide_ - n_.columns, T(0));
    }
  }

  const Settings& set_;
  const AttentionSizes& n_;
  const Keys<P>& keys_;
  const Image<const S> foreground_;
  const int64_t wide_, pitch_;
  int64_t factor_size_;
  Ring<T> h_, edges_, a1_, ends_, e_;
  const T *before_ = nullptr, *at_ = nullptr, *after_ = nullptr;
  T *query_, *tile_, *flat_, *left_, *right_, *zeros_, *factors_, *sums_;
  Word* query_words_;
};

// Rows of queries that share their reading of the background.
int64_t rows_of_queries(const AttentionSizes& n) { return std::clamp<int64_t>(kDepth / n.columns, 1, kQueryRows); }

// out of the rows [begin, end) of queries.
template <class P, class S>
void attend(const Settings& set, const Keys<P>& keys, const Image<const S>& foreground, const Image<S>& out,
            int64_t begin, int64_t end) {
  using T = typename P::Sum;
  using Word = typename P::Word;
  const AttentionSizes& n = set.sizes;
  const int64_t wide = set.wide(), size = (std::max(kDepth, n.columns) + P::size) * wide;
  const int64_t most = rows_of_queries(n), plane = n.channels * wide;
  Arena<T> arena;
  Arena<Word> words;
  Scores<S, P> scores(set, keys, foreground, arena, words, 4, most + 2);
  T *mixed, *result;
  Word* mixed_words;
  arena.want(mixed, most * 4 * size);
  arena.want(result, most * set.subpixels() * plane);
  words.want(mixed_words, most * 4 * size / P::size);
  arena.allocate();
  words.allocate();
  scores.begin();
  const Word* operands[kQueryRows][kSides];
  for (int64_t t = begin; t < end; t += most) {
    const int64_t rows = std::min(most, end - t);
    for (int64_t y = std::max<int64_t>(t - 1, 0); y < std::min(t + rows + 1, n.rows); ++y) scores.attention(y);
    keys.in_groups(0, kSides, kDepth, [&](int64_t first, int64_t last, const Places& base, const Places& count) {
      Places whole = base;  // products begin with a whole word of places, whose first may be of no use
      for (int side = 0; side < kSides; ++side) whole.of[side] -= base.of[side] % P::size;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t ky = first; ky < last; ++ky) {
          mix(scores.attended(t + i, ky), &keys.places[ky * n.columns], whole, mixed + i * 4 * size, size, n.columns,
              wide);
        }
        for (int side = 0; side < kSides; ++side) {
          const int64_t before = base.of[side] - whole.of[side];
          T* const weights = mixed + (i * 4 + side) * size;
          std::fill_n(weights, before * wide, T(0));
          operands[i][side] =
              P::pair_rows(weights, before + count.of[side], wide, mixed_words + (i * 4 + side) * size / P::size);
        }
      }
      for (int64_t r = 0; r < set.subpixels(); ++r) {
        const int64_t side = set.side(r), depth = P::words(base.of[side] - whole.of[side] + count.of[side]);
        for (int64_t c = 0; c < n.channels; c += kPanel) {
          const Word* cells = keys.by_places(r).at(whole.of[side] / P::size, c);
          for (int64_t i = 0; i < rows; ++i) {
            P::multiply({cells, 1, kPanel}, row_major(operands[i][side], wide),
                        row_major(result + (i * set.subpixels() + r) * plane + c * wide, wide),
                        std::min(kPanel, n.channels - c), wide, depth, first > 0);
          }
        }
      }
    });
    for (int64_t i = 0; i < rows; ++i) {
      unpack_channels(result + i * set.subpixels() * plane, set, set.subpixels(), t + i, T(0.25), out);
    }
  }
}

// The derivatives of one sample, as far as they come from the rows [begin, end) of queries. Every step of the forward
// pass is undone row by row; sums along diagonals are their own adjoints.
template <class S, class P>
class Gradients {
 public:
  using T = typename P::Sum;
  using Word = typename P::Word;

  Gradients(const Settings& set, const Keys<P>& keys, const Image<const S>& foreground, const Image<const S>& gradient)
      : set_(set), n_(set.sizes), keys_(keys), foreground_(foreground), gradient_(gradient), wide_(set.wide()),
        pitch_(wide_ + kAlign), tile_(n_.columns * wide_), together_(std::max(kDepth / 2, n_.columns)),
        scores_(set, keys, foreground, arena_, words_, 8, kQueryRows + 4) {
    const int64_t size = set.row_size();
    for (Ring<T>& ring : mixed_) ring.ask(arena_, std::min<int64_t>(3, n_.rows), size);
    for (Ring<T>* ring : {&by_a2_, &by_a1_, &by_h_}) ring->ask(arena_, std::min<int64_t>(3, n_.rows), size);
    ends_.ask(arena_, 2, size);
    arena_.want(by_g_, kQueryRows * size);
    for (T*& tile : tiles_) arena_.want(tile, (together_ + 3) * pitch_);
    arena_.want(square_, (n_.columns + 3) * pitch_);
    arena_.want(flat_, (n_.columns + 3) * pitch_);
    arena_.want(upstream_, set.subpixels() * set.channels() * wide_);
    arena_.want(zeros_, tile_ + 2 * kAlign);
    arena_.want(sum_, wide_);
    arena_.want(left_, n_.keys);
    arena_.want(right_, n_.keys);
    arena_.want(result_, n_.channels * wide_);
    arena_.want(buffer_, kBlock * n_.columns);
    words_.want(pixels_, set.subpixels() * set.matrix(kQueryRows * P::words(n_.columns)));
    words_.want(upstream_words_, set.subpixels() * P::words(set.channels()) * wide_);
    words_.want(buffer_words_, kBlock * P::words(n_.columns));
    words_.want(operand_, kQueryRows * 4 * (together_ + 1) * P::words(wide_));
    arena_.want(queries_, n_.rate * set.matrix(kQueryRows * n_.columns));
    arena_.want(attention_, kQueryRows * 4 * (together_ + 1) * wide_);
    arena_.want(by_compared_, set.matrix(keys.compared_count()));
    arena_.want(by_pasted_, set.subpixels() * set.matrix(keys.pasted_count()));
    arena_.want(products_, n_.keys * kAlign);
  }
  Gradients(const Gradients&) = delete;

  // By the foreground, into the rows, and by the background, kept until finish().
  void run(int64_t begin, int64_t end, const Image<S>& by_foreground) {
    arena_.allocate();
    words_.allocate();
    scores_.begin();
    for (Ring<T>* ring : {&mixed_[0], &mixed_[1], &by_a1_, &by_h_, &ends_}) ring->clear();
    by_a2_.zero();  // where keys are invalid it stays so
    for (T* tile : tiles_) std::fill_n(tile, (together_ + 3) * pitch_, T(0));
    std::fill_n(square_, (n_.columns + 3) * pitch_, T(0));
    std::fill_n(upstream_, set_.subpixels() * set_.channels() * wide_, T(0));
    std::fill_n(zeros_, tile_ + 2 * kAlign, T(0));
    std::fill_n(by_compared_, set_.matrix(keys_.compared_count()), T(0));
    std::fill_n(by_pasted_, set_.subpixels() * set_.matrix(keys_.pasted_count()), T(0));
    std::fill_n(products_, n_.keys * kAlign, T(0));
    begin_ = begin, end_ = end;
    for (int64_t t = begin; t < end; t += kQueryRows) {
      const int64_t rows = std::min(kQueryRows, end - t);
      for (int64_t i = 0; i < rows; ++i) {
        T* const by_g = by_g_ + i * set_.row_size();
        undo_sums(t + i, by_g);
        by_queries(by_g, t + i, by_foreground);
      }
      by_keys(t, rows);
      by_patches(t, rows);
    }
  }

  // Sums what the parts found and writes the derivative by the background.
  static void finish(const std::vector<std::unique_ptr<Gradients>>& parts, const Image<S>& by_background) {
    const Gradients& first = *parts.front();
    const Settings& set = first.set_;
    const AttentionSizes& n = set.sizes;
    // d/db' of 1 / norm: minus the products' sum / norm^2 * b', at each of the nine pixels of the patch.
    std::vector<T> by_square(n.keys);
    for (int64_t k = 0; k < n.keys; ++k) {
      T product = 0;
      for (const auto& part : parts) {
        for (int64_t i = 0; i < kAlign; ++i) product += part->products_[k * kAlign + i];
      }
      by_square[k] = -product * first.keys_.inverse[k] * first.keys_.inverse[k] * first.keys_.clamped[k];
    }
    torch::stable::parallel_for(0, set.subpixels() * n.rows, 4, [&](int64_t begin, int64_t end) {
      std::vector<T> sums(set.matrix(n.columns));
      const Panels<T> total{sums.data(), kPanel, n.columns * kPanel};
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = i / n.rows, y = i % n.rows;
        for (int64_t x = 0; x < n.columns; ++x) {
          first.total(parts, by_square, r, y, x, total);
        }
        unpack_cells(total, set, r, y, by_background);
      }
    });
  }

 private:
  // The derivative by one pixel of one cell, of all parts: row x of `to`.
  void total(const std::vector<std::unique_ptr<Gradients>>& parts, const std::vector<T>& by_square, int64_t r,
             int64_t y, int64_t x, const Panels<T>& to) const {
    const int side = static_cast<int>(set_.side(r));
    const Places* const place = &keys_.places[y * n_.columns + x];
    const bool compared = r == 0 && has(place, kCompared);
    T square = 0;
    if (compared) {
      for (int64_t v = std::max<int64_t>(y - 1, 0); v < std::min(y + 2, n_.rows); ++v) {
        for (int64_t u = std::max<int64_t>(x - 1, 0); u < std::min(x + 2, n_.columns); ++u) {
          square += by_square[v * n_.columns + u];
        }
      }
    }
    for (int64_t c = 0; c < set_.channels(); c += kAlign) {
      T* const sum = to.at(x, c);
      const auto add = [&](const Panels<T>& from, int64_t row, T factor) {
        for (int64_t j = 0; j < kAlign; ++j) sum[j] += factor * from.at(row, c)[j];
      };
      std::fill_n(sum, kAlign, T(0));
      if (compared) add(keys_.compared(), place->of[kCompared], square);
      for (const auto& part : parts) {
        if (has(place, side)) add(keys_.like_pasted(part->by_pasted_, r), place->of[side], T(1));
        if (compared) add(keys_.like_compared(part->by_compared_), place->of[kCompared], T(1));
      }
    }
  }

  // By the mixtures T of row t, summed over their neighbours along the row: mixed_[sy > 0].
  void unpaste(int64_t t) {
    const bool there = mixed_[0].has(t);
    if (mixed_[1].has(t) && there) return;
    for (int64_t r = 0; r < set_.subpixels(); ++r) {
      pack_channels(gradient_, set_, r, t, T(0.25), upstream_ + r * set_.channels() * wide_);
    }
    const Word* const upstream =
        P::pair_rows(upstream_, set_.subpixels() * set_.channels(), wide_, upstream_words_);
    keys_.in_groups(0, kSides, kDepth / 2, [&](int64_t first, int64_t last, const Places& base, const Places& count) {
      bool some[4] = {};
      for (int64_t r = 0; r < set_.subpixels(); ++r) {
        const int64_t side = set_.side(r);
        const Panels<Word> cells = keys_.pasted(r);
        P::multiply({cells.at(base.of[side], 0), kPanel, 1, kPanel, cells.panel},
                    row_major(upstream + r * P::words(set_.channels()) * wide_, wide_),
                    row_major(tiles_[side] + pitch_ + kAlign, pitch_), count.of[side], wide_, P::words(n_.channels),
                    some[side]);
        some[side] = true;
      }
      for (int64_t ky = first; ky < last; ++ky) {
        const auto rows = [&](int side) { return keys_.rows(tiles_[side] + kAlign, pitch_, ky, base, side); };
        for (const int down : {0, 1}) unmix(rows(2 * down), rows(2 * down + 1), mixed_[down][t] + ky * tile_, wide_);
      }
    });
  }

  // By A2 of row y.
  const T* by_a2(int64_t y) {
    if (by_a2_.has(y)) return by_a2_[y];
    const bool first = y == 0, last = y + 1 == n_.rows;
    const T* const numerators = scores_.attention(y);
    for (int64_t t = std::max<int64_t>(y - 1, 0); t <= std::min(y + 1, n_.rows - 1); ++t) unpaste(t);
    T* const out = by_a2_[y];
    std::fill_n(sum_, wide_, T(0));
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      const int64_t at = ky * tile_;
      gather_attention_gradient(mixed_[0][y] + at, mixed_[1][y] + at,
                                first || ky == 0 ? zeros_ : mixed_[1][y - 1] + at - tile_,
                                last || ky + 1 == n_.rows ? zeros_ : mixed_[0][y + 1] + at + tile_, numerators + at,
                                scores_.factor(y, ky), out + at, sum_, keys_.valid(ky), wide_);
    }
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      through_softmax(out + ky * tile_, numerators + ky * tile_, scores_.factor(y, ky), sum_,
                      static_cast<T>(set_.scale), keys_.valid(ky), wide_);
    }
    return out;
  }

  const T* end(int which) {
    T* const out = ends_[which];
    if (!ends_.has(which)) move_queries(n_, wide_, by_a2(which ? n_.rows - 1 : 0), out, which ? 1 : -1);
    return out;
  }

  // By A1 of row y.
  const T* by_a1(int64_t y) {
    if (by_a1_.has(y)) return by_a1_[y];
    const bool first = y == 0, last = y + 1 == n_.rows;
    const T* before = first ? end(1) : nullptr;
    const T* after = last ? end(0) : nullptr;
    if (!first) before = by_a2(y - 1);
    const T* const at = by_a2(y);
    if (!last) after = by_a2(y + 1);
    T* const out = by_a1_[y];
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      add_down_columns(n_, wide_, before, at, after, zeros_, ky, out + ky * tile_);
    }
    return out;
  }

  // By the sum over rows of H of row y, that is S times its norm.
  const T* by_h(int64_t y) {
    if (by_h_.has(y)) return by_h_[y];
    T* const out = by_h_[y];
    T* const products = begin_ <= y && y < end_ ? products_ : nullptr;
    const auto finished = [&](int64_t first, int64_t last) {
      const auto [before, at, after] = h_;
      through_norm(out, before, at, after, zeros_, keys_.inverse, products, first, last, n_.keys, n_.columns, wide_);
    };
    if (!set_.fuse) {
      std::copy_n(by_a2(y), set_.row_size(), out);
      h_ = scores_.sums_of_columns(y);
      finished(0, n_.keys);
      return out;
    }
    const bool left = y > 0, right = y + 1 < n_.rows;
    if (left) column(by_a1(y - 1), n_.columns - 1, left_);
    const T* const at = by_a1(y);
    if (right) column(by_a1(y + 1), 0, right_);
    h_ = scores_.sums_of_columns(y);
    diagonal_flat(
        n_, wide_, flat_, left ? left_ : nullptr, right ? right_ : nullptr, out,
        [&](int64_t ky, T* to) {
          for (int64_t k = 0; k < n_.columns; ++k) std::copy_n(at + ky * tile_ + k * wide_, wide_, to + k * pitch_);
        },
        finished);
    return out;
  }

  void column(const T* from, int64_t x, T* to) {
    for (int64_t k = 0; k < n_.keys; ++k) to[k] = from[k * wide_ + x];
  }

  // By G of row y, at the places of the keys that are compared.
  void undo_sums(int64_t y, T* to) {
    const T* const before = y > 0 ? by_h(y - 1) : nullptr;
    const T* const at = by_h(y);
    const T* const after = y + 1 < n_.rows ? by_h(y + 1) : nullptr;
    T* const tile = square_ + pitch_ + kAlign;  // between rows and columns of zeros
    for (int64_t ky = 0; ky < n_.rows; ++ky) {
      add_three(before && ky > 0 ? before + (ky - 1) * tile_ : zeros_, at + ky * tile_,
                after && ky + 1 < n_.rows ? after + (ky + 1) * tile_ : zeros_, static_cast<const T*>(nullptr), tile,
                pitch_, n_.columns, wide_);
      const Places* const places = &keys_.places[ky * n_.columns];
      const auto place = [&](int64_t k) {
        return has(places + k, kCompared) ? to + places[k].of[kCompared] * wide_ : nullptr;
      };
      add_diagonal<T>([&](int64_t k) { return tile + k * pitch_; }, place, n_.columns, wide_);
    }
  }

  void by_queries(const T* by_g, int64_t y, const Image<S>& by_foreground) {
    const int64_t keys = keys_.compared_count();
    for (int64_t k = 0; k == 0 || k < keys; k += kDepth) {
      for (int64_t c = 0; c < n_.channels; c += kPanel) {
        multiply<T>({keys_.compared().at(k, c), 1, kPanel}, row_major<const T>(by_g + k * wide_, wide_),
                    row_major(result_ + c * wide_, wide_), std::min(kPanel, n_.channels - c), wide_,
                    std::min(kDepth, keys - k), k > 0);
      }
    }
    unpack_channels(result_, set_, 1, y, T(1), by_foreground);  // the other pixels are not compared
  }

  // Rows [t, t + rows) of queries as matrices, for products Q over all of these queries: pixels (ry, rx), one after the
  // other.
  template <class Q>
  void pack_queries(const Image<const S>& image, int64_t ry, int64_t t, int64_t rows, T factor,
                    typename Q::Word* scratch, typename Q::Word* to) {
    const int64_t width = Q::words(n_.columns);
    for (int64_t i = 0; i < rows; ++i) {
      pack_cells(image, set_, ry, t + i, factor, buffer_, [&](int64_t rx, int64_t c) {
        const auto* from = Q::pair_columns(buffer_, kBlock, n_.columns, scratch);
        transpose<kBlock>(from, width, queries<Q>(to, rx).at(i * width, c), kPanel, width);
      });
    }
  }

  template <class Q, class Element>
  Panels<Element> queries(Element* packed, int64_t pixel) const {
    const int64_t cells = kQueryRows * Q::words(n_.columns);
    return {packed + pixel * set_.matrix(cells), kPanel, cells * kPanel};
  }

  // By the keys, from G.
  void by_keys(int64_t t, int64_t rows) {
    pack_queries<Single<T>>(foreground_, 0, t, rows, T(1), nullptr, queries_);
    const Panels<const T> packed = queries<Single<T>, const T>(queries_, 0);
    const int64_t keys = keys_.compared_count();
    for (int64_t k = 0; k < keys; k += kDepth / 2) {
      multiply<T>({by_g_ + k * wide_, wide_, 1, n_.columns, set_.row_size()}, packed,
                  keys_.like_compared(by_compared_).from(k), std::min(kDepth / 2, keys - k), set_.channels(),
                  rows * n_.columns, true);
    }
  }

  // By the patches that were pasted.
  void by_patches(int64_t t, int64_t rows) {
    for (int64_t y = std::max<int64_t>(t - 1, 0); y <= std::min(t + rows, n_.rows - 1); ++y) scores_.attention(y);
    const int64_t size = (together_ + 1) * wide_;
    for (int64_t ry = 0; ry < n_.rate; ++ry) {
      pack_queries<P>(gradient_, ry, t, rows, T(0.25), buffer_words_, queries<P>(pixels_, ry * n_.rate).data);
    }
    keys_.in_groups(0, kSides, kDepth / 2, [&](int64_t first, int64_t last, const Places& base, const Places& count) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t ky = first; ky < last; ++ky) {
          mix(scores_.attended(t + i, ky), &keys_.places[ky * n_.columns], base, attention_ + i * 4 * size, size,
              n_.columns, wide_);
        }
      }
      for (int64_t r = 0; r < set_.subpixels(); ++r) {
        const int64_t side = set_.side(r), keys = count.of[side], width = P::words(n_.columns);
        const int64_t step = P::size == 1 ? 4 * size : keys * P::words(wide_);
        const T* const weights = attention_ + side * size;
        const Word* const left = P::pair_columns(weights, keys, wide_, operand_);
        for (int64_t i = 1; i < rows; ++i) P::pair_columns(weights + i * 4 * size, keys, wide_, operand_ + i * step);
        P::multiply({left, P::words(wide_), 1, width, step}, queries<P, const Word>(pixels_, r),
                    keys_.like_pasted(by_pasted_, r).from(base.of[side]), keys, set_.channels(), rows * width, true);
      }
    });
  }

  Arena<T> arena_;
  Arena<Word> words_;
  const Settings& set_;
  const AttentionSizes& n_;
  const Keys<P>& keys_;
  const Image<const S> foreground_, gradient_;
  const int64_t wide_, pitch_, tile_, together_;
  Scores<S, P> scores_;
  Ring<T> mixed_[2], by_a2_, by_a1_, by_h_, ends_;
  std::tuple<const T*, const T*, const T*> h_;
  T *by_g_, *tiles_[4], *square_, *flat_, *upstream_, *zeros_, *sum_, *left_, *right_, *result_, *buffer_;
  T *queries_, *attention_, *by_compared_, *by_pasted_, *products_;
  Word *pixels_, *upstream_words_, *buffer_words_, *operand_;
  int64_t begin_ = 0, end_ = 0;
};

template <class S>
Image<const S> read(const Tensor& tensor, int64_t sample) {
  return Image<const S>::of(tensor, static_cast<const S*>(tensor.const_data_ptr()), sample);
}

const bool* mask(const Tensor& occluded, int64_t sample) {
  return static_cast<const bool*>(occluded.const_data_ptr()) + sample * occluded.size(2) * occluded.size(3);
}

template <class S>
Image<S> write(const Tensor& tensor, int64_t sample) {
  return Image<S>::of(tensor, static_cast<S*>(tensor.mutable_data_ptr()), sample);
}

// Positions of the best keys, minus those of the queries, of the rows [begin, end) of queries.
template <class P, class S>
void locate(const Settings& set, const Keys<P>& keys, const Image<const S>& foreground, int32_t* down, int32_t* right,
            int64_t begin, int64_t end) {
  const AttentionSizes& n = set.sizes;
  Arena<typename P::Sum> arena;
  Arena<typename P::Word> words;
  Scores<S, P> scores(set, keys, foreground, arena, words, 4, 1);
  arena.allocate();
  words.allocate();
  scores.begin();
  std::vector<int64_t> found(n.columns);
  for (int64_t y = begin; y < end; ++y) {
    scores.best(y, found.data());
    for (int64_t x = 0; x < n.columns; ++x) {
      const int64_t k = found[x], at = y * n.columns + x;
      down[at] = k < 0 ? 0 : static_cast<int32_t>(k / n.columns - y);
      right[at] = k < 0 ? 0 : static_cast<int32_t>(k % n.columns - x);
    }
  }
}

// Calls work(sample, parts): samples side by side when there are enough of them for the threads, otherwise one after
// the other, each in parts that can run side by side.
template <class Work>
void for_samples(const AttentionSizes& n, const Work& work) {
  const int64_t threads = torch::stable::get_num_threads();
  if (n.batch < threads) {
    for (int64_t sample = 0; sample < n.batch; ++sample) work(sample, std::min(threads, n.rows));
    return;
  }
  torch::stable::parallel_for(0, n.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) work(sample, 1);
  });
}

// Calls work(part, first row, end) for every part.
template <class Work>
void in_parts(int64_t rows, int64_t parts, const Work& work) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work(part, rows * part / parts, rows * (part + 1) / parts);
  });
}

Tensor contextual_attention(const Tensor& foreground, const Tensor& background, const Tensor& occluded_, int64_t rate,
                            double scale, bool fuse) {
  const Settings set{attention_sizes(foreground, background, occluded_, rate), scale, fuse};
  const AttentionSizes& n = set.sizes;
  const Tensor occluded = torch::stable::contiguous(occluded_);
  const Tensor out = empty(foreground, foreground.sizes(),
                           is_channels_last(foreground) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  if (out.numel() == 0) return out;

  for_dtype(foreground.scalar_type(), "contextual_attention", [&](auto zero) {
    using S = decltype(zero);
    by_products<S>([&](auto products) {
      for_samples(n, [&](int64_t sample, int64_t parts) {
        const Keys<decltype(products)> keys(set, read<S>(background, sample), mask(occluded, sample), true);
        in_parts(n.rows, parts, [&](int64_t, int64_t begin, int64_t end) {
          attend(set, keys, read<S>(foreground, sample), write<S>(out, sample), begin, end);
        });
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> contextual_attention_backward(const Tensor& gradient, const Tensor& foreground,
                                                         const Tensor& background, const Tensor& occluded_,
                                                         int64_t rate, double scale, bool fuse) {
  const Settings set{attention_sizes(foreground, background, occluded_, rate), scale, fuse};
  attention_sizes(gradient, background, occluded_, rate);
  const AttentionSizes& n = set.sizes;
  const Tensor occluded = torch::stable::contiguous(occluded_);
  const auto like = [](const Tensor& input) {
    return empty(input, input.sizes(),
                 is_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  };
  const Tensor by_foreground = like(foreground), by_background = like(background);
  if (by_foreground.numel() == 0) return {by_foreground, by_background};

  for_dtype(foreground.scalar_type(), "contextual_attention_backward", [&](auto zero) {
    using S = decltype(zero);
    by_products<S>([&](auto products) {
      using P = decltype(products);
      using Part = Gradients<S, P>;
      for_samples(n, [&](int64_t sample, int64_t count) {
        const Keys<P> keys(set, read<S>(background, sample), mask(occluded, sample), false);
        std::vector<std::unique_ptr<Part>> parts(count);
        in_parts(n.rows, count, [&](int64_t part, int64_t begin, int64_t end) {
          parts[part] = std::make_unique<Part>(set, keys, read<S>(foreground, sample), read<S>(gradient, sample));
          parts[part]->run(begin, end, write<S>(by_foreground, sample));
        });
        Part::finish(parts, write<S>(by_background, sample));
      });
    });
  });
  return {by_foreground, by_background};
}

Tensor contextual_attention_offsets(const Tensor& foreground, const Tensor& background, const Tensor& occluded_,
                                    int64_t rate, bool fuse) {
  const Settings set{attention_sizes(foreground, background, occluded_, rate), 1, fuse};
  const AttentionSizes& n = set.sizes;
  const Tensor occluded = torch::stable::contiguous(occluded_);
  const Tensor out = torch::stable::empty({n.batch, 2, n.rows, n.columns}, ScalarType::Int, std::nullopt,
                                          foreground.device());
  if (out.numel() == 0) return out;

  for_dtype(foreground.scalar_type(), "contextual_attention_offsets", [&](auto zero) {
    using S = decltype(zero);
    for_samples(n, [&](int64_t sample, int64_t parts) {
      using P = Single<typename Compute<S>::type>;
      const Keys<P> keys(set, read<S>(background, sample), mask(occluded, sample), false);
      int32_t* down = static_cast<int32_t*>(out.mutable_data_ptr()) + sample * 2 * n.keys;
      in_parts(n.rows, parts, [&](int64_t, int64_t begin, int64_t end) {
        locate(set, keys, read<S>(foreground, sample), down, down + n.keys, begin, end);
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CPU, m) {
  m.impl("contextual_attention", TORCH_BOX(&deocc::contextual_attention));
  m.impl("contextual_attention_backward", TORCH_BOX(&deocc::contextual_attention_backward));
  m.impl("contextual_attention_offsets", TORCH_BOX(&deocc::contextual_attention_offsets));
}
