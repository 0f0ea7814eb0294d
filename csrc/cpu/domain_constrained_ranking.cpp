// Centres are looked at tile by tile. The product of a tile with the images of its domain bounds every distance from
// both sides, and only those that may be the least are computed, from differences in double precision: near duplicates,
// for which the product has no correct digit left, are told apart, and neither tiles nor threads change a result. Nor
// does multiplying bfloat16 in words of two dimensions, where the processor can.
#include "../domain_constrained_ranking.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "dots.h"

namespace deocc {
namespace {

using torch::headeronly::BFloat16;

constexpr int64_t kTile = 64;               // centres
constexpr int64_t kDepth = 256;             // words in one matrix product: its right side stays in the cache
constexpr int64_t kAlign = 16;              // images of a domain are padded to a multiple of this
constexpr int64_t kPerThread = 1 << 22;     // multiply-adds below which a second thread costs more than it saves

int64_t padded(int64_t count) { return (count + kAlign - 1) / kAlign * kAlign; }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// Aligned, and not set to 0.
template <class T>
Buffer<T> allocate(int64_t count) {
  Buffer<T> memory(static_cast<T*>(std::aligned_alloc(64, padded(std::max<int64_t>(count, 1)) * sizeof(T))));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// ---- Distances ----

// Calls body(sum, words...) for the words of some rows, vector by vector; adds up four sums, and their lanes. What is
// missing in the last vectors is 0.
template <class V, class W, class Body, class... Row>
DEOCC_INLINE typename V::Element sum_over(int64_t words, const Body& body, const Row*... row) {
  typename V::type sum[4] = {};
  int64_t k = 0;
  for (; k + 4 * W::lanes <= words; k += 4 * W::lanes) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) body(sum[u], W::load(row + k + u * W::lanes)...);
  }
  for (; k < words; k += W::lanes) {
    const auto load = [&](const auto* from) DEOCC_BODY {
      typename W::Element rest[W::lanes] = {};
      std::copy(from + k, from + std::min(k + W::lanes, words), rest);
      return W::load(rest);
    };
    body(sum[0], load(row)...);
  }
  const typename V::type all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  typename V::Element total = 0;
  for (int lane = 0; lane < V::lanes; ++lane) total += all[lane];
  return total;
}

// The elements of a vector of words as vectors V, those that come first in each word and those that come second.
template <class P, class V, class Words>
DEOCC_INLINE void split(const Words& words, typename V::type (&to)[P::size]) {
  if constexpr (P::size == 1) {
    to[0] = words;
  } else {
    to[0] = (typename V::type)(words << 16);
    to[1] = (typename V::type)(words & 0xffff0000);
  }
}

// Square of the distance between two rows. A difference in T is as good as one in double: where the two are close, and
// digits would be missing, it is exact.
template <class P>
double square_distance(const typename P::Word* one, const typename P::Word* other, int64_t words) {
  double result = 0;
  by_width<double>([&](auto vector) DEOCC_BODY {
    using V = decltype(vector);
    using W = Vector<typename P::Word, V::lanes * sizeof(typename P::Word)>;
    using N = Vector<typename P::Sum, sizeof(typename W::type)>;
    using Words = typename W::type;
    const auto add = [](typename V::type& sum, const Words& a, const Words& b) DEOCC_BODY {
      typename N::type x[P::size], y[P::size];
      split<P, N>(a, x);
      split<P, N>(b, y);
#pragma GCC unroll 2
      for (int e = 0; e < P::size; ++e) {
        const auto difference = __builtin_convertvector(x[e] - y[e], typename V::type);
        sum += difference * difference;
      }
    };
    result = sum_over<V, W>(words, add, one, other);
  });
  return result;
}

template <class P>
typename P::Sum square_length(const typename P::Word* row, int64_t words) {
  using T = typename P::Sum;
  T result = 0;
  by_width<T>([&](auto vector) DEOCC_BODY {
    using V = decltype(vector);
    using W = Vector<typename P::Word, sizeof(typename V::type)>;
    const auto add = [](typename V::type& sum, const typename W::type& a) DEOCC_BODY {
      typename V::type x[P::size];
      split<P, V>(a, x);
#pragma GCC unroll 2
      for (int e = 0; e < P::size; ++e) sum += x[e] * x[e];
    };
    result = sum_over<V, W>(words, add, row);
  });
  return result;
}

// Rows of V::lanes values each to columns: block[i][j] becomes block[j][i], a square of half the size at a time.
template <class V>
DEOCC_INLINE void transpose(typename V::type (&block)[V::lanes]) {
  using T = typename V::Element;
  using Index = Vector<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, V::lanes * sizeof(T)>;
#pragma GCC unroll 4
  for (int half = V::lanes / 2; half > 0; half /= 2) {
    typename Index::type first, second;
    for (int lane = 0; lane < V::lanes; ++lane) {
      first[lane] = lane & half ? V::lanes + lane - half : lane;
      second[lane] = lane & half ? V::lanes + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < V::lanes; ++i) {
      if (i & half) continue;
      const typename V::type a = block[i], b = block[i + half];
      block[i] = __builtin_shuffle(a, b, first);
      block[i + half] = __builtin_shuffle(a, b, second);
    }
  }
}

// How far |a|^2 + |b|^2 - 2 a.b, computed in T, lies from the square of the distance, at most:
// factor * (|a|^2 + |b|^2) + rest. The lengths and the product are sums of `dim` rounded terms each, and `least` is the
// least number that is not taken for 0.
template <class T>
struct Rounding {
  T factor, rest;

  Rounding(int64_t dim, T least)
      : factor(T(2 * dim + 32) * std::numeric_limits<T>::epsilon() / 2), rest(T(8 * dim) * least) {}
  T below(T square) const { return square - square * factor - rest; }
  T above(T square) const { return square + square * factor + rest; }
};

// The least, or the greatest, that was offered; of equals the one with the lowest index. NaN comes before anything.
template <bool greatest>
struct Extreme {
  double square = 0;
  int64_t index = -1;

  void offer(double value, int64_t at) {
    if (index < 0 || before(value, square) || (!before(square, value) && at < index)) square = value, index = at;
  }
  static bool before(double a, double b) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && !std::isnan(b);
    return greatest ? a > b : a < b;
  }
};
using Nearest = Extreme<false>;
using Farthest = Extreme<true>;

// ---- Inputs ----

// Rows of a tensor of any strides as contiguous rows of words; of any dtype, if a word is one element.
template <class P>
class Rows {
 public:
  using T = typename P::Sum;
  using Word = typename P::Word;

  Rows(const Tensor& tensor, int64_t length)
      : data_(static_cast<const char*>(tensor.const_data_ptr())),
        step_(tensor.stride(tensor.dim() - 1)),
        length_(length) {
    if constexpr (P::size == 1) {
      for_dtype(tensor.scalar_type(), "domain_constrained_ranking", [&](auto zero) {
        using S = decltype(zero);
        in_place_ = std::is_same_v<S, T> && (step_ == 1 || length == 1);
        copy_ = [](const void* data, int64_t offset, int64_t step, int64_t count, Word* to) {
          const S* __restrict from = static_cast<const S*>(data) + offset;
          if (step == 1) {
            T* __restrict out = to;
            by_width<T>([&](auto) DEOCC_BODY {
              for (int64_t k = 0; k < count; ++k) out[k] = static_cast<T>(from[k]);
            });
          } else {
            for (int64_t k = 0; k < count; ++k) to[k] = static_cast<T>(from[k * step]);
          }
        };
      });
    } else {
      in_place_ = step_ == 1 && length % 2 == 0 && reinterpret_cast<uintptr_t>(data_) % sizeof(Word) == 0;
      for (int axis = 0; axis + 1 < tensor.dim(); ++axis) in_place_ = in_place_ && tensor.stride(axis) % 2 == 0;
      copy_ = [](const void* data, int64_t offset, int64_t step, int64_t count, Word* to) {
        const BFloat16* from = static_cast<const BFloat16*>(data) + offset;
        to[P::words(count) - 1] = 0;
        if (step == 1) {
          std::memcpy(to, from, count * sizeof(BFloat16));
        } else {
          for (int64_t k = 0; k < count; ++k) to[k / 2] = k % 2 ? to[k / 2] | from[k * step].x << 16 : from[k * step].x;
        }
      };
    }
  }

  // Whether rows lie in the tensor as they are wanted.
  bool in_place() const { return in_place_; }
  const Word* at(int64_t offset) const {
    return reinterpret_cast<const Word*>(data_ + offset * static_cast<int64_t>(sizeof(Word)) / P::size);
  }
  void copy(int64_t offset, Word* to) const { copy_(data_, offset, step_, length_, to); }

  const Word* read(int64_t offset, Word* scratch) const {
    if (in_place_) return at(offset);
    copy(offset, scratch);
    return scratch;
  }

 private:
  const char* data_;
  int64_t step_, length_;
  bool in_place_ = false;
  void (*copy_)(const void*, int64_t, int64_t, int64_t, Word*) = nullptr;
};

// The images of one identity in one domain.
struct Group {
  int64_t label;
  bool known;
  std::vector<int64_t> columns;  // their places among the images of the domain
  Nearest image;                 // to the centre, of other identities: a place likewise
};

// The images of one domain.
template <class P>
struct Side {
  using T = typename P::Sum;

  std::vector<int64_t> images;
  std::vector<Group> groups;      // by their first images
  std::vector<int64_t> by_label;  // the groups, by identity
  int64_t columns = 0;            // images, padded
  Buffer<typename P::Word> panels;  // (D, columns), words of dimensions
  Buffer<T> below, above;         // the images' squared lengths, for lower and upper bounds
};

template <class P>
class Ranking {
 public:
  using T = typename P::Sum;
  using Word = typename P::Word;

  Ranking(const RankingSizes& sizes, const Tensor& features, const Tensor& labels, const Tensor& domains,
          const Tensor& centers, const Tensor& known, bool everywhere)
      : n_(sizes),
        words_(P::words(sizes.dim)),
        everywhere_(everywhere),
        known_(static_cast<const bool*>(known.const_data_ptr())),
        rounding_(sizes.dim, P::size == 1 ? std::numeric_limits<T>::denorm_min() : std::numeric_limits<T>::min()),
        centers_(centers, sizes.dim),
        domain_step_(centers.stride(0)),
        identity_step_(centers.stride(1)),
        labels_(static_cast<const int64_t*>(labels.const_data_ptr())),
        domains_(static_cast<const bool*>(domains.const_data_ptr())),
        own_(sizes.images),
        center_(sizes.images),
        image_(sizes.images),
        group_(sizes.images) {
    for (int64_t i = 0; i < n_.images; ++i) {
      STD_TORCH_CHECK(labels_[i] >= 0 && labels_[i] < n_.identities,
                      "domain_constrained_ranking: labels must be from 0 to ", n_.identities - 1, ", got ", labels_[i]);
    }
    const Rows<P> rows(features, n_.dim);
    if (rows.in_place()) {
      features_ = rows.at(0);
      feature_step_ = features.stride(0) / P::size;
    } else {
      copied_ = allocate<Word>(n_.images * words_);
      for (int64_t i = 0; i < n_.images; ++i) rows.copy(i * features.stride(0), copied_.get() + i * words_);
      features_ = copied_.get();
      feature_step_ = words_;
    }
    divide();
    for (const bool masked : {false, true}) pack(sides_[masked]);
  }

  // The loss; writes its derivative by the features, unless there is no room for it.
  double run(double margin_single, double margin_cross, double cross, T* by_features) {
    search_centers();
    for (const Group& full : sides_[0].groups) pair(full);
    const double loss = add_up(margin_single, margin_cross, cross);
    if (by_features) differentiate(by_features);
    return loss;
  }

 private:
  // Part of the gradient by an image: factor * (it - other), where other is an image or a centre of its domain.
  struct Term {
    int64_t image, other;
    bool center;
    double factor;
  };

  const Word* feature(int64_t image) const { return features_ + image * feature_step_; }
  bool is_known(bool masked, int64_t identity) const { return known_[masked * n_.identities + identity]; }
  int64_t offset(bool masked, int64_t identity) const { return masked * domain_step_ + identity * identity_step_; }

  // Images into domains, and those into identities.
  void divide() {
    std::vector<int64_t> order(n_.images);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return labels_[a] < labels_[b]; });
    std::vector<int64_t> column(n_.images);
    for (int64_t i = 0; i < n_.images; ++i) {
      column[i] = sides_[domains_[i]].images.size();
      sides_[domains_[i]].images.push_back(i);
    }
    for (const bool masked : {false, true}) {
      Side<P>& side = sides_[masked];
      for (const int64_t i : order) {
        if (domains_[i] != masked) continue;
        if (side.groups.empty() || side.groups.back().label != labels_[i]) {
          side.groups.push_back({labels_[i], is_known(masked, labels_[i]), {}, {}});
        }
        side.groups.back().columns.push_back(column[i]);
      }
      std::sort(side.groups.begin(), side.groups.end(),
                [](const Group& a, const Group& b) { return a.columns[0] < b.columns[0]; });
      side.by_label.resize(side.groups.size());
      std::iota(side.by_label.begin(), side.by_label.end(), 0);
      std::sort(side.by_label.begin(), side.by_label.end(),
                [&](int64_t a, int64_t b) { return side.groups[a].label < side.groups[b].label; });
      for (size_t g = 0; g < side.groups.size(); ++g) {
        for (const int64_t c : side.groups[g].columns) group_[side.images[c]] = g;
      }
    }
  }

  void pack(Side<P>& side) const {
    const int64_t count = side.images.size();
    side.columns = padded(count);
    if (!count) return;
    side.panels = allocate<Word>((side.columns + kPanel - 1) / kPanel * kPanel * words_);
    side.below = allocate<T>(side.columns);
    side.above = allocate<T>(side.columns);
    by_width<Word>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      const Word* from[V::lanes];
      for (int64_t first = 0; first < side.columns; first += V::lanes) {
        Word* to = side.panels.get() + first / kPanel * kPanel * words_ + first % kPanel;
        // The last image stands in where there is none; nobody looks at those columns.
        for (int64_t c = 0; c < V::lanes; ++c) from[c] = feature(side.images[std::min(first + c, count - 1)]);
        int64_t k = 0;
        for (; k + V::lanes <= words_; k += V::lanes) {
          typename V::type block[V::lanes];
#pragma GCC unroll 16
          for (int c = 0; c < V::lanes; ++c) block[c] = V::load(from[c] + k);
          transpose<V>(block);
#pragma GCC unroll 16
          for (int c = 0; c < V::lanes; ++c) V::store(to + (k + c) * kPanel, block[c]);
        }
        for (; k < words_; ++k) {
          for (int64_t c = 0; c < V::lanes; ++c) to[k * kPanel + c] = from[c][k];
        }
      }
    });
    for (int64_t c = 0; c < side.columns; ++c) {
      const T square = c < count ? square_length<P>(feature(side.images[c]), words_) : T(0);
      side.below[c] = rounding_.below(square);
      side.above[c] = rounding_.above(square);
    }
  }

  // Where the side's centres are counted: identities, or groups.
  int64_t places(const Side<P>& side) const {
    if (side.images.empty()) return 0;
    return everywhere_ ? n_.identities : static_cast<int64_t>(side.groups.size());
  }

  void search_centers() {
    const int64_t first = (places(sides_[0]) + kTile - 1) / kTile, second = (places(sides_[1]) + kTile - 1) / kTile;
    const int64_t columns = std::max<int64_t>({sides_[0].columns, sides_[1].columns, 1});
    const int64_t grain = std::max<int64_t>(kPerThread / (kTile * columns * n_.dim), 1);
    torch::stable::parallel_for(0, first + second, grain, [&](int64_t begin, int64_t end) {
      if (begin < first) search(false, begin * kTile, std::min(end, first) * kTile);
      if (end > first) search(true, (std::max(begin, first) - first) * kTile, (end - first) * kTile);
    });
  }

  struct Entry {
    int64_t place, identity, group;  // group: -1 without an image
  };

  // Centres of a side, from one place to another.
  void search(bool masked, int64_t place, int64_t end) {
    Side<P>& side = sides_[masked];
    end = std::min(end, places(side));
    const int64_t columns = side.columns, count = side.images.size();
    const Buffer<Word> copies = allocate<Word>(kTile * words_);
    const Buffer<T> scores = allocate<T>(kTile * columns), limits = allocate<T>(columns);
    std::fill_n(limits.get(), count, std::numeric_limits<T>::infinity());
    std::fill_n(limits.get() + count, columns - count, -std::numeric_limits<T>::infinity());
    std::vector<Nearest> nearest(count);
    std::vector<int64_t> found(columns);
    std::vector<Entry> tile;
    auto labelled = std::lower_bound(side.by_label.begin(), side.by_label.end(), place,
                                     [&](int64_t g, int64_t label) { return side.groups[g].label < label; });
    while (place < end) {
      tile.clear();
      for (; place < end && static_cast<int64_t>(tile.size()) < kTile; ++place) {
        int64_t group = everywhere_ ? -1 : place;
        if (everywhere_ && labelled != side.by_label.end() && side.groups[*labelled].label == place) {
          group = *labelled++;
        }
        const int64_t identity = everywhere_ ? place : side.groups[place].label;
        if (is_known(masked, identity)) tile.push_back({place, identity, group});
      }
      search_tile(side, tile, masked, copies.get(), scores.get(), limits.get(), nearest, found.data());
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t c = 0; c < count; ++c) {
      if (nearest[c].index >= 0) center_[side.images[c]].offer(nearest[c].square, nearest[c].index);
    }
  }

  void search_tile(Side<P>& side, const std::vector<Entry>& tile, bool masked, Word* copies, T* scores, T* limits,
                   std::vector<Nearest>& nearest, int64_t* found) {
    const int64_t rows = tile.size(), columns = side.columns;
    if (!rows) return;
    bool in_place = centers_.in_place();
    for (int64_t r = 1; r < rows; ++r) in_place = in_place && tile[r].identity == tile[r - 1].identity + 1;
    const Word* centers = in_place ? centers_.at(offset(masked, tile[0].identity)) : copies;
    const int64_t step = in_place ? identity_step_ / P::size : words_;
    T below[kTile], above[kTile];
    for (int64_t r = 0; r < rows; ++r) {
      if (!in_place) centers_.copy(offset(masked, tile[r].identity), copies + r * words_);
      const T square = square_length<P>(centers + r * step, words_);
      below[r] = rounding_.below(square);
      above[r] = rounding_.above(square);
    }
    for (int64_t k = 0; k < words_; k += kDepth) {
      P::multiply({centers + k, step, 1}, {side.panels.get() + k * kPanel, kPanel, words_ * kPanel},
                  row_major(scores, columns), rows, columns, std::min(kDepth, words_ - k), k > 0);
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (tile[r].group < 0) continue;
      Group& group = side.groups[tile[r].group];
      T* score = scores + r * columns;
      for (const int64_t c : group.columns) {
        score[c] = -std::numeric_limits<T>::infinity();
        own_[side.images[c]] = square_distance<P>(centers + r * step, feature(side.images[c]), words_);
      }
      const T limit = least_of_row(score, side.above.get(), above[r], side.images.size());
      const int64_t contenders = contend<true>(score, side, below[r], &limit, found);
      for (int64_t f = 0; f < contenders; ++f) {
        const int64_t c = found[f];
        if (group_[side.images[c]] == tile[r].group) continue;
        group.image.offer(square_distance<P>(centers + r * step, feature(side.images[c]), words_), c);
      }
    }
    least_of_columns(scores, side.above.get(), above, limits, rows, columns);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t contenders = contend<false>(scores + r * columns, side, below[r], limits, found);
      for (int64_t f = 0; f < contenders; ++f) {
        const int64_t c = found[f];
        if (group_[side.images[c]] == tile[r].group || std::isnan(nearest[c].square)) continue;
        nearest[c].offer(square_distance<P>(centers + r * step, feature(side.images[c]), words_), tile[r].place);
      }
    }
  }

  // The least upper bound of a centre's distances.
  static T least_of_row(const T* score, const T* above, T center, int64_t count) {
    T least = std::numeric_limits<T>::infinity();
    by_width<T>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      typename V::type lowest = typename V::type{} + std::numeric_limits<T>::infinity();
      int64_t c = 0;
      for (; c + V::lanes <= count; c += V::lanes) {
        const typename V::type bound = V::load(above + c) + center - V::load(score + c) * T(2);
        lowest = bound < lowest ? bound : lowest;
      }
      T all = least;
      for (int lane = 0; lane < V::lanes; ++lane) all = lowest[lane] < all ? lowest[lane] : all;
      for (; c < count; ++c) {
        const T bound = above[c] + center - score[c] * T(2);
        all = bound < all ? bound : all;
      }
      least = all;
    });
    return least;
  }

  // limits = the least upper bounds of the images' distances, so far.
  static void least_of_columns(const T* scores, const T* above, const T* centers, T* limits, int64_t rows,
                               int64_t columns) {
    by_width<T>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      for (int64_t c = 0; c < columns; c += V::lanes) {
        const typename V::type image = V::load(above + c);
        typename V::type least = V::load(limits + c);
        for (int64_t r = 0; r < rows; ++r) {
          const typename V::type bound = image + centers[r] - V::load(scores + r * columns + c) * T(2);
          least = bound < least ? bound : least;
        }
        V::store(limits + c, least);
      }
    });
  }

  // The images whose lower bounds are not above the limit, one for all or one for each, and those with NaN.
  template <bool one>
  static int64_t contend(const T* score, const Side<P>& side, T center, const T* limits, int64_t* found) {
    const T* below = side.below.get();
    const int64_t images = side.images.size();
    int64_t count = 0;
    by_width<T>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      using W = Vector<int64_t, V::lanes * sizeof(T)>;
      using Words = typename W::type;
      const auto inside = [&](int64_t c) DEOCC_BODY {
        const typename V::type limit = one ? typename V::type{} + limits[0] : V::load(limits + c);
        return (Words)(V::load(below + c) + center - V::load(score + c) * T(2) > limit);
      };
      Words all = ~Words{};
      for (int64_t c = 0; c < side.columns; c += V::lanes) all &= inside(c);
      int64_t outside = -1;
      for (int w = 0; w < W::lanes; ++w) outside &= all[w];
      if (outside == -1) return;
      for (int64_t c = 0; c < images; ++c) {
        const T limit = limits[one ? 0 : c];
        found[count] = c;
        count += !(below[c] + center - score[c] * T(2) > limit);
      }
    });
    return count;
  }

  // Eq. 10 between the full faces of an identity and its masked ones.
  void pair(const Group& full) {
    const std::vector<int64_t>& order = sides_[1].by_label;
    const auto found = std::lower_bound(order.begin(), order.end(), full.label, [&](int64_t g, int64_t label) {
      return sides_[1].groups[g].label < label;
    });
    if (found == order.end() || sides_[1].groups[*found].label != full.label) return;
    for (const int64_t a : full.columns) {
      for (const int64_t b : sides_[1].groups[*found].columns) {
        const int64_t i = sides_[0].images[a], j = sides_[1].images[b];
        const double square = square_distance<P>(feature(i), feature(j), words_);
        image_[i].offer(square, j);
        image_[j].offer(square, i);
      }
    }
  }

  double add_up(double margin_single, double margin_cross, double cross) {
    double loss = 0;
    const auto pull = [&](int64_t image, int64_t other, bool center, double distance, double weight) {
      if (distance != 0) terms_.push_back({image, other, center, weight / distance});
    };
    for (int64_t i = 0; i < n_.images; ++i) {
      const Side<P>& side = sides_[domains_[i]];
      const Group& group = side.groups[group_[i]];
      const double weight = 1.0 / static_cast<double>(n_.images);
      if (group.known && group.image.index >= 0) {
        const double near = std::sqrt(own_[i]), far = std::sqrt(group.image.square);
        const double value = near + margin_single - far;
        if (!(value <= 0)) {
          loss += value * weight;
          pull(i, group.label, true, near, weight);
          pull(side.images[group.image.index], group.label, true, far, -weight);
        }
      }
      if (image_[i].index >= 0 && center_[i].index >= 0) {
        const double near = std::sqrt(image_[i].square), far = std::sqrt(center_[i].square);
        const double value = near + margin_cross - far;
        if (!(value <= 0)) {
          const int64_t identity = everywhere_ ? center_[i].index : side.groups[center_[i].index].label;
          loss += value * weight * cross;
          pull(i, image_[i].index, false, near, weight * cross);
          pull(image_[i].index, i, false, near, weight * cross);
          pull(i, identity, true, far, -weight * cross);
        }
      }
    }
    return loss;
  }

  void differentiate(T* by_features) {
    std::vector<int64_t> first(n_.images + 1);
    for (const Term& term : terms_) ++first[term.image + 1];
    for (int64_t i = 0; i < n_.images; ++i) first[i + 1] += first[i];
    std::vector<const Term*> terms(terms_.size());
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (const Term& term : terms_) terms[next[term.image]++] = &term;
    const int64_t grain = std::max<int64_t>(kPerThread / (16 * n_.dim), 1);
    torch::stable::parallel_for(0, n_.images, grain, [&](int64_t begin, int64_t end) {
      std::vector<Word> copies;
      std::vector<std::pair<const Word*, T>> parts;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t count = first[i + 1] - first[i];
        if (!centers_.in_place()) copies.resize(std::max<size_t>(copies.size(), count * words_));
        parts.clear();
        for (int64_t t = 0; t < count; ++t) {
          const Term& term = *terms[first[i] + t];
          const Word* other = term.center
                                  ? centers_.read(offset(domains_[i], term.other), copies.data() + t * words_)
                                  : feature(term.other);
          parts.push_back({other, static_cast<T>(term.factor)});
        }
        add_differences(feature(i), parts, by_features + i * n_.dim);
      }
    });
  }

  // to = sum of factor * (one - other)
  void add_differences(const Word* one, const std::vector<std::pair<const Word*, T>>& others, T* to) const {
    by_width<T>([&](auto vector) DEOCC_BODY {
      using V = decltype(vector);
      constexpr int together = 4 / P::size;
      int64_t k = 0;
      for (; (k + together * V::lanes) * P::size <= n_.dim; k += together * V::lanes) {
        add_differences<V, together>(one + k, others, k, to + k * P::size);
      }
      for (; k < words_; ++k) {
        T word[P::size];
        add_differences<Vector<T, sizeof(T)>, 1>(one + k, others, k, word);
        std::copy_n(word, std::min(P::size, n_.dim - k * P::size), to + k * P::size);
      }
    });
  }

  // The same of some vectors of words, from word k on.
  template <class V, int together>
  static DEOCC_INLINE void add_differences(const Word* one, const std::vector<std::pair<const Word*, T>>& others,
                                           int64_t k, T* to) {
    using Vec = typename V::type;
    using W = Vector<Word, sizeof(Vec)>;
    Vec from[together][P::size], sum[together][P::size] = {};
#pragma GCC unroll 4
    for (int v = 0; v < together; ++v) split<P, V>(W::load(one + v * V::lanes), from[v]);
    for (const auto& [other, factor] : others) {
#pragma GCC unroll 4
      for (int v = 0; v < together; ++v) {
        Vec there[P::size];
        split<P, V>(W::load(other + k + v * V::lanes), there);
#pragma GCC unroll 2
        for (int e = 0; e < P::size; ++e) sum[v][e] += (from[v][e] - there[e]) * factor;
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < together; ++v) {
      if constexpr (P::size == 1) {
        V::store(to + v * V::lanes, sum[v][0]);
      } else {
#pragma GCC unroll 16
        for (int lane = 0; lane < V::lanes; ++lane) {
          to[2 * (v * V::lanes + lane)] = sum[v][0][lane];
          to[2 * (v * V::lanes + lane) + 1] = sum[v][1][lane];
        }
      }
    }
  }

  const RankingSizes n_;
  const int64_t words_;  // of a feature
  const bool everywhere_;
  const bool* known_;
  const Rounding<T> rounding_;
  const Rows<P> centers_;
  const int64_t domain_step_, identity_step_;
  const int64_t* labels_;
  const bool* domains_;
  const Word* features_ = nullptr;
  int64_t feature_step_ = 0;
  Buffer<Word> copied_;
  Side<P> sides_[2];
  std::vector<double> own_;       // squared distance of each image to its own centre
  std::vector<Nearest> center_;   // of other identities in its domain: a place
  std::vector<Farthest> image_;   // of its identity in the other domain
  std::vector<int64_t> group_;    // of each image, in its domain
  std::vector<Term> terms_;
  std::mutex mutex_;
};

std::tuple<Tensor, Tensor> domain_constrained_ranking(const Tensor& features, const Tensor& labels_,
                                                      const Tensor& domains_, const Tensor& centers,
                                                      const Tensor& known_, double margin_single, double margin_cross,
                                                      double cross, bool everywhere, bool derivative) {
  const RankingSizes sizes = ranking_sizes(features, labels_, domains_, centers, known_);
  const Tensor labels = torch::stable::contiguous(labels_), domains = torch::stable::contiguous(domains_);
  const Tensor known = torch::stable::contiguous(known_);
  const ScalarType wide = features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor loss = empty(features, torch::headeronly::IntHeaderOnlyArrayRef());
  const Tensor by_features =
      torch::stable::empty({derivative ? sizes.images : 0, sizes.dim}, wide, std::nullopt, features.device());
  for_dtype(features.scalar_type(), "domain_constrained_ranking", [&](auto zero) {
    using S = decltype(zero);
    using T = typename Compute<S>::type;
    double value = 0;
    const auto rank = [&](auto products) {
      Ranking<decltype(products)> ranking(sizes, features, labels, domains, centers, known, everywhere);
      value = ranking.run(margin_single, margin_cross, cross,
                          derivative ? static_cast<T*>(by_features.mutable_data_ptr()) : nullptr);
    };
    if (sizes.images) {
      if (centers.scalar_type() == features.scalar_type()) {
        by_products<S>(rank);
      } else {
        rank(Single<T>());
      }
    }
    *static_cast<S*>(loss.mutable_data_ptr()) = static_cast<S>(static_cast<T>(value));
  });
  return {loss, by_features};
}

Tensor domain_constrained_ranking_backward(const Tensor& gradient, const Tensor& by_features_,
                                           const Tensor& /*features*/) {
  STD_TORCH_CHECK(gradient.numel() == 1,
                  "domain_constrained_ranking_backward: gradient must have one element, got ", gradient.numel());
  const Tensor by_features = torch::stable::contiguous(by_features_);
  const Tensor out = empty(gradient, by_features.sizes());
  for_dtype(gradient.scalar_type(), "domain_constrained_ranking_backward", [&](auto zero) {
    using S = decltype(zero);
    using T = typename Compute<S>::type;
    STD_TORCH_CHECK(by_features.scalar_type() == (sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float),
                    "domain_constrained_ranking_backward: by_features must have the dtype that ",
                    torch::headeronly::toString(gradient.scalar_type()), " is computed in, got ",
                    torch::headeronly::toString(by_features.scalar_type()));
    const T factor = static_cast<T>(*static_cast<const S*>(gradient.const_data_ptr()));
    const T* __restrict from = static_cast<const T*>(by_features.const_data_ptr());
    S* __restrict to = static_cast<S*>(out.mutable_data_ptr());
    const int64_t count = out.numel();
    by_width<T>([&](auto) DEOCC_BODY {
      for (int64_t k = 0; k < count; ++k) to[k] = static_cast<S>(from[k] * factor);
    });
  });
  return out;
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CPU, m) {
  m.impl("domain_constrained_ranking", TORCH_BOX(&deocc::domain_constrained_ranking));
  m.impl("domain_constrained_ranking_backward", TORCH_BOX(&deocc::domain_constrained_ranking_backward));
}
