// Some hundred keys at a time: their scores with 32 queries are a matrix that lies in the cache, are turned into
// exponentials there, and these weigh the keys that are added up for the derivative. Exponentials are powers of 2, and
// relative to an offset of each query: its highest score so far, about, since a sum of float bears offsets that are
// too low by kSlack. So the sums have to be scaled down hardly ever after the first keys.
#include "../info_nce.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <numbers>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dots.h"

namespace deocc {
namespace {

using torch::headeronly::BFloat16;

constexpr int64_t kQueries = 256;    // queries that are multiplied with keys while these are in the cache
constexpr int64_t kKeys = 128;       // keys in one matrix product, at most
constexpr int64_t kTile = 1 << 15;   // elements of these keys, about
constexpr int64_t kDepth = 256;      // columns in one matrix product of scores
constexpr int64_t kAlone = 1 << 18;  // multiply-adds of a thread below which it costs more than it saves
constexpr int kSlack = 30;           // how far above its offset, in powers of 2, a score may be
constexpr int kLarge = 1 << 20;      // powers of 2 above which the rounding of a score matters beside kSlack

int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : memory_(static_cast<T*>(std::aligned_alloc(64, padded(std::max<int64_t>(count, 1) * sizeof(T), 64)))) {
    if (!memory_) throw std::bad_alloc();
  }
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

template <class S>
struct Rows {
  const S* data;
  int64_t row, column;

  explicit Rows(const Tensor& tensor)
      : data(static_cast<const S*>(tensor.const_data_ptr())), row(tensor.stride(0)), column(tensor.stride(1)) {}
  const S& at(int64_t r, int64_t c) const { return data[r * row + c * column]; }
};

// 2^x, exactly 0 below 2^-126; NaN stays NaN. For x up to 100.
template <class V>
DEOCC_INLINE typename V::type power_of_two(const typename V::type& argument) {
  using T = typename V::Element;
  using Vec = typename V::type;
  constexpr bool narrow = std::is_same_v<T, float>;
  typedef std::conditional_t<narrow, int32_t, int64_t> Integer;
  typedef Integer Integers __attribute__((vector_size(sizeof(Vec))));
  constexpr int mantissa = narrow ? 23 : 52, bias = narrow ? 127 : 1023;
  // Adding 1.5 * 2^mantissa rounds to an integer, which then stands, with the bias, in the low bits.
  constexpr T round = T(1.5) * (Integer(1) << mantissa) + bias;
  const Vec x = argument < T(-bias) ? Vec{} - T(bias) : argument;
  const Vec shifted = x + round;
  const Vec r = x - (shifted - round);
  const Vec power = (Vec)((Integers)shifted << mantissa);
  Vec p;
  if constexpr (narrow) {  // least relative error on [-0.5, 0.5]
    p = r * 1.327647129e-3f + 9.675540961e-3f;
    p = p * r + 5.550713092e-2f;
    p = p * r + 2.402212024e-1f;
    p = p * r + 6.931469440e-1f;
  } else {
    constexpr double terms[] = {2.5678435993488196e-11, 4.44553827187081e-10,   7.054911620801121e-09,
                                1.0178086009239696e-07, 1.3215486790144305e-06, 1.5252733804059838e-05,
                                1.5403530393381606e-04, 1.3333558146428441e-03, 9.618129107628477e-03,
                                5.5504108664821576e-02, 2.402265069591007e-01,  6.931471805599453e-01};
    p = Vec{};
#pragma GCC unroll 12
    for (const double term : terms) p = p * r + term;
  }
  return (p * r + T(1)) * power;
}

// What is kept of each of up to kPanel queries while keys stream by.
template <class T>
struct Sums {
  T *offset, *total;
  bool moved = false;  // an offset has changed: what was added up has to be multiplied by
  alignas(64) T factor[kPanel];
};

// Pairs of bfloat16, the lower half first, rounded to nearest.
template <class V>
DEOCC_INLINE void store_pairs(uint32_t* to, const typename V::type& low, const typename V::type& high) {
  typedef uint32_t Words __attribute__((vector_size(sizeof(typename V::type))));
  const Words l = (Words)low + 0x8000, h = (Words)high + 0x8000;
  const Words pair = (l >> 16) | (h & 0xffff0000);
  __builtin_memcpy(to, &pair, sizeof pair);
}

// From scores (keys, kPanel) to their exponentials, which replace them where the derivative needs them: as they are,
// or, `pairs`, in bfloat16, where a word holds two keys and the odd one is joined by 0.
template <bool keep, bool pairs, class T>
void exponentials(T* scores, int64_t keys, int64_t columns, T factor, Sums<T>& sums) {
  by_width<T>([&](auto vector) DEOCC_BODY {
    using V = decltype(vector);
    using Vec = typename V::type;
    sums.moved = false;
    for (int64_t x = 0; x < columns; x += V::lanes) {
      T* __restrict at = scores + x;
      Vec most = V::load(at), other = V::load(at + (keys - 1) * kPanel);
      for (int64_t k = 0; k + 1 < keys; k += 2) {
        const Vec one = V::load(at + k * kPanel), two = V::load(at + (k + 1) * kPanel);
        most = one > most ? one : most;
        other = two > other ? two : other;
      }
      most = (other > most ? other : most) * factor;
      T scale = factor;
      bool large = false;
      for (int lane = 0; lane < V::lanes; ++lane) large |= std::abs(most[lane]) > kLarge;
      if (large) {
        // Below, the compiler multiplies and subtracts in one step, and what `most` was rounded by would be left over.
        for (int64_t k = 0; k < keys; ++k) V::store(at + k * kPanel, V::load(at + k * kPanel) * scale);
        scale = 1;
      }
      const Vec before = V::load(sums.offset + x);
      const Vec offset = most > before + T(kSlack) ? most : before;
      Vec total = V::load(sums.total + x);
      bool moved = false;
      for (int lane = 0; lane < V::lanes; ++lane) moved |= offset[lane] > before[lane];
      if (moved) {
        if (!sums.moved) std::fill_n(sums.factor, kPanel, T(1));
        sums.moved = true;
        const Vec shrink = power_of_two<V>(before - offset);
        V::store(sums.factor + x, shrink);
        V::store(sums.offset + x, offset);
        total *= shrink;
      }
      Vec sum{};
      if constexpr (pairs) {
        uint32_t* to = reinterpret_cast<uint32_t*>(scores) + x;
        int64_t k = 0;
        for (; k + 1 < keys; k += 2, to += kPanel) {
          const Vec low = power_of_two<V>(V::load(at + k * kPanel) * scale - offset);
          const Vec high = power_of_two<V>(V::load(at + (k + 1) * kPanel) * scale - offset);
          sum += low + high;
          if constexpr (keep) store_pairs<V>(to, low, high);
        }
        if (k < keys) {
          const Vec low = power_of_two<V>(V::load(at + k * kPanel) * scale - offset);
          sum += low;
          if constexpr (keep) store_pairs<V>(to, low, Vec{});
        }
      } else {
        for (int64_t k = 0; k < keys; ++k) {
          const Vec e = power_of_two<V>(V::load(at + k * kPanel) * scale - offset);
          sum += e;
          if constexpr (keep) V::store(at + k * kPanel, e);
        }
      }
      V::store(sums.total + x, total + sum);
    }
  });
}

// Copies rows [first, first + count) into panels: element (r, c) goes to to[c / kPanel * count * kPanel + r * kPanel +
// c % kPanel]. The last panel is filled up with 0.
template <class S, class T>
void pack_rows(const Rows<S>& rows, int64_t first, int64_t count, int64_t columns, T* to) {
  by_width<float>([&](auto) DEOCC_BODY {
    const int64_t whole = rows.column == 1 ? columns / kPanel * kPanel : 0;
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < whole; c += kPanel) {
        const S* __restrict from = &rows.at(first + r, c);
        T* __restrict at = to + c * count + r * kPanel;
        for (int64_t x = 0; x < kPanel; ++x) at[x] = static_cast<T>(from[x]);
      }
    }
    for (int64_t c = whole; c < columns; c += kPanel) {
      T* const at = to + c * count;
      const int64_t width = std::min(kPanel, columns - c);
      if (width < kPanel) std::fill_n(at, count * kPanel, T(0));
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t r = 0; r < count; ++r) at[r * kPanel + x] = static_cast<T>(rows.at(first + r, c + x));
      }
    }
  });
}

// The queries' columns as panels of kPanel queries: element (n, c) goes to
// to[n / kPanel * dim * kPanel + c * kPanel + n % kPanel].
template <class S, class T>
void pack_queries(const Rows<S>& query, int64_t batch, int64_t dim, T* to) {
  std::fill_n(to, padded(batch, kPanel) * dim, T(0));
  for (int64_t n = 0; n < batch; ++n) {
    T* at = to + n / kPanel * dim * kPanel + n % kPanel;
    for (int64_t c = 0; c < dim; ++c) at[c * kPanel] = static_cast<T>(query.at(n, c));
  }
}

uint16_t bits(const BFloat16& value) { return value.x; }

// The same in pairs of columns of bfloat16.
template <class S>
void pack_queries_in_pairs(const Rows<S>& query, int64_t batch, int64_t dim, uint32_t* to) {
  const int64_t depth = (dim + 1) / 2;
  std::fill_n(to, padded(batch, kPanel) * depth, 0u);
  for (int64_t n = 0; n < batch; ++n) {
    uint32_t* at = to + n / kPanel * depth * kPanel + n % kPanel;
    for (int64_t c = 0; c < dim; ++c) {
      at[c / 2 * kPanel] |= uint32_t(bits(BFloat16(static_cast<float>(query.at(n, c))))) << c % 2 * 16;
    }
  }
}

// Keys for scores: (count, depth) pairs of columns.
void pack_keys_by_columns(const Rows<BFloat16>& queue, int64_t first, int64_t count, int64_t dim, uint32_t* to) {
  const int64_t depth = (dim + 1) / 2;
  for (int64_t r = 0; r < count; ++r, to += depth) {
    if (queue.column == 1) {
      to[depth - 1] = 0;
      __builtin_memcpy(to, &queue.at(first + r, 0), dim * sizeof(BFloat16));
      continue;
    }
    for (int64_t c = 0; c < depth; ++c) {
      const uint32_t high = 2 * c + 1 < dim ? bits(queue.at(first + r, 2 * c + 1)) : 0;
      to[c] = bits(queue.at(first + r, 2 * c)) | high << 16;
    }
  }
}

// Keys to be added up: pairs of keys, in panels of columns. From what pack_keys_by_columns has made.
void pack_keys_by_keys(const uint32_t* keys, int64_t count, int64_t dim, uint32_t* to) {
  const int64_t depth = (dim + 1) / 2, pairs = (count + 1) / 2;
  const uint32_t nothing[kPanel / 2] = {};
  by_width<float>([&](auto) DEOCC_BODY {
    for (int64_t j = 0; j < pairs; ++j) {
      for (int64_t c = 0; c < depth; c += kPanel / 2) {
        uint32_t* const at = to + c / (kPanel / 2) * pairs * kPanel + j * kPanel;
        const uint32_t* const one = keys + 2 * j * depth + c;
        const int64_t width = std::min(kPanel / 2, depth - c);
        if (width < kPanel / 2) std::fill_n(at, kPanel, 0u);
        pair_across(one, 2 * j + 1 < count ? one + depth : nothing, width, at);
      }
    }
  });
}

struct Settings {
  InfoNceSizes sizes;
  double temperature;
  bool by_query, by_positive;

  int64_t wide() const { return padded(sizes.dim, kPanel); }
  int64_t tile() const { return std::clamp<int64_t>(kTile / wide() / 16 * 16, 16, kKeys); }
  double scale() const { return std::numbers::log2e / temperature; }
};

// The sums over all keys that the loss and its derivative are made of, in parts: each has its share of the keys.
template <class T>
struct Parts {
  int64_t count, batch, wide;
  Buffer<T> offset, total, added;  // (count, batch padded), and (count, batch, wide) or nothing

  Parts(int64_t parts, const Settings& set)
      : count(parts),
        batch(padded(set.sizes.batch, kPanel)),
        wide(set.wide()),
        offset(parts * batch),
        total(parts * batch),
        added(set.by_query ? parts * batch * wide : 0) {}

  T* added_to(int64_t part, int64_t query) const { return added.get() + (part * batch + query) * wide; }
};

// Scores and sums of keys in the type that they are computed in.
template <class S, class T>
class Plain {
 public:
  template <class Q>
  Plain(const Settings& set, const Rows<Q>& query)
      : set_(set), queries_(padded(set.sizes.batch, kPanel) * set.sizes.dim) {
    pack_queries(query, set.sizes.batch, set.sizes.dim, queries_.get());
  }

  class Task {
   public:
    explicit Task(const Plain& plain)
        : set_(plain.set_), queries_(plain.queries_.get()), keys_(set_.tile() * set_.wide()) {}

    void load(const Rows<S>& queue, int64_t first, int64_t count) {
      pack_rows(queue, first, count, set_.sizes.dim, keys_.get());
      count_ = count;
    }

    void score(int64_t query, int64_t columns, T* scores) {
      const int64_t dim = set_.sizes.dim;
      for (int64_t c = 0; c < dim; c += kDepth) {
        multiply<T>({keys_.get() + c * count_, kPanel, 1, kPanel, count_ * kPanel},
                    row_major<const T>(queries_ + query * dim + c * kPanel, kPanel), row_major(scores, kPanel), count_,
                    columns, std::min(kDepth, dim - c), c > 0);
      }
    }

    template <bool keep>
    void exponentiate(T* scores, int64_t columns, T scale, Sums<T>& sums) {
      exponentials<keep, false>(scores, count_, columns, scale, sums);
    }

    void add(const T* weights, int64_t queries, T* added) {
      multiply<T>({weights, 1, kPanel}, {keys_.get(), kPanel, count_ * kPanel}, row_major(added, set_.wide()), queries,
                  padded(set_.sizes.dim, 16), count_, true);
    }

   private:
    const Settings& set_;
    const T* queries_;
    Buffer<T> keys_;
    int64_t count_ = 0;
  };

 private:
  const Settings& set_;
  Buffer<T> queries_;
};

#if DEOCC_HAS_DOTS
// The same for keys in bfloat16, with queries and exponentials rounded to it.
class Dots {
 public:
  template <class Q>
  Dots(const Settings& set, const Rows<Q>& query)
      : set_(set), queries_(padded(set.sizes.batch, kPanel) * set.wide() / 2) {
    pack_queries_in_pairs(query, set.sizes.batch, set.sizes.dim, queries_.get());
  }

  class Task {
   public:
    explicit Task(const Dots& dots)
        : set_(dots.set_),
          queries_(dots.queries_.get()),
          depth_((set_.sizes.dim + 1) / 2),
          by_columns_(set_.tile() * depth_),
          by_keys_(set_.by_query ? set_.tile() / 2 * set_.wide() : 0) {}

    void load(const Rows<BFloat16>& queue, int64_t first, int64_t count) {
      pack_keys_by_columns(queue, first, count, set_.sizes.dim, by_columns_.get());
      if (set_.by_query) pack_keys_by_keys(by_columns_.get(), count, set_.sizes.dim, by_keys_.get());
      count_ = count;
    }

    void score(int64_t query, int64_t columns, float* scores) {
      for (int64_t c = 0; c < depth_; c += kDepth) {
        multiply_pairs({by_columns_.get() + c, depth_, 1},
                       row_major<const uint32_t>(queries_ + query * depth_ + c * kPanel, kPanel),
                       row_major(scores, kPanel), count_, columns, std::min(kDepth, depth_ - c), c > 0);
      }
    }

    template <bool keep>
    void exponentiate(float* scores, int64_t columns, float scale, Sums<float>& sums) {
      exponentials<keep, true>(scores, count_, columns, scale, sums);
    }

    void add(const float* weights, int64_t queries, float* added) {
      const int64_t pairs = (count_ + 1) / 2;
      multiply_pairs({reinterpret_cast<const uint32_t*>(weights), 1, kPanel}, {by_keys_.get(), kPanel, pairs * kPanel},
                     row_major(added, set_.wide()), queries, padded(set_.sizes.dim, 16), pairs, true);
    }

   private:
    const Settings& set_;
    const uint32_t* queries_;
    const int64_t depth_;
    Buffer<uint32_t> by_columns_, by_keys_;
    int64_t count_ = 0;
  };

 private:
  const Settings& set_;
  Buffer<uint32_t> queries_;
};
#endif

// Lets the keys of one part stream by the queries [begin, end).
template <class Method, class S, class T>
void stream(const Settings& set, const Method& method, const Rows<S>& queue, const Parts<T>& parts, int64_t part,
            int64_t begin, int64_t end) {
  typename Method::Task task(method);
  const int64_t keys = set.sizes.keys, step = set.tile(), tiles = (keys + step - 1) / step;
  const T scale = static_cast<T>(set.scale());
  Buffer<T> scores(step * kPanel);
  if (set.by_query) std::fill_n(parts.added_to(part, begin), (end - begin) * parts.wide, T(0));
  Sums<T> sums;
  for (int64_t tile = tiles * part / parts.count; tile < tiles * (part + 1) / parts.count; ++tile) {
    task.load(queue, tile * step, std::min(step, keys - tile * step));
    for (int64_t n = begin; n < end; n += kPanel) {
      const int64_t rows = std::min(kPanel, end - n), columns = padded(rows, 16);
      sums.offset = parts.offset.get() + part * parts.batch + n;
      sums.total = parts.total.get() + part * parts.batch + n;
      task.score(n, columns, scores.get());
      if (!set.by_query) {
        task.template exponentiate<false>(scores.get(), columns, scale, sums);
        continue;
      }
      task.template exponentiate<true>(scores.get(), columns, scale, sums);
      T* const added = parts.added_to(part, n);
      if (sums.moved) {
        for (int64_t i = 0; i < rows; ++i) {
          if (sums.factor[i] == T(1)) continue;
          for (int64_t c = 0; c < parts.wide; ++c) added[i * parts.wide + c] *= sums.factor[i];
        }
      }
      task.add(scores.get(), rows, added);
    }
  }
}

template <class Q, class S, class T>
struct Job {
  const Settings& set;
  Rows<Q> query, positive;
  Rows<S> queue;
  T *by_query, *by_positive;  // (N, D), contiguous, or null

  // The mean loss.
  double run() const {
#if DEOCC_HAS_DOTS
    if constexpr (std::is_same_v<S, BFloat16> && std::is_same_v<T, float>) {
      if (has_dots()) return run(Dots(set, query));
    }
#endif
    return run(Plain<S, T>(set, query));
  }

  template <class Method>
  double run(const Method& method) const {
    const auto [batch, dim, keys] = set.sizes;
    const int64_t blocks = (batch + kQueries - 1) / kQueries, tiles = (keys + set.tile() - 1) / set.tile();
    const int64_t threads = torch::stable::get_num_threads();
    // As many parts as share all blocks evenly among the threads, unless there are blocks enough.
    int64_t shares = blocks < 4 * threads ? threads / std::gcd(blocks, threads) : 1;
    if (batch * keys * dim < kAlone * threads) shares = 1;
    const Parts<T> parts(std::clamp<int64_t>(shares, 1, std::max<int64_t>(tiles, 1)), set);
    std::fill_n(parts.total.get(), parts.count * parts.batch, T(0));
    std::fill_n(parts.offset.get(), parts.count * parts.batch, T(0));
    std::vector<double> right(batch);
    for (int64_t n = 0; n < batch; ++n) {
      double product = 0;
      for (int64_t c = 0; c < dim; ++c) {
        product += static_cast<double>(query.at(n, c)) * static_cast<double>(positive.at(n, c));
      }
      right[n] = product * set.scale();
      for (int64_t part = 0; part < parts.count; ++part) {
        parts.offset.get()[part * parts.batch + n] = static_cast<T>(right[n]);
      }
    }
    torch::stable::parallel_for(0, blocks * parts.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task / parts.count * kQueries;
        stream(set, method, queue, parts, task % parts.count, first, std::min(first + kQueries, batch));
      }
    });
    double loss = 0;
    for (int64_t n = 0; n < batch; ++n) loss += finish(parts, n, right[n]);
    return loss / static_cast<double>(batch);
  }

  // One query's loss, and its derivatives. `right` is its score with the positive.
  double finish(const Parts<T>& parts, int64_t n, double right) const {
    const auto [batch, dim, keys] = set.sizes;
    double highest = right, wrong = 0;
    const auto offset = [&](int64_t part) -> double { return parts.offset.get()[part * parts.batch + n]; };
    // Without any key near it, an offset is only a rounded `right`: nothing is relative to it.
    const auto counts = [&](int64_t part) { return parts.total.get()[part * parts.batch + n] != T(0); };
    for (int64_t part = 0; part < parts.count; ++part) {
      if (counts(part) && offset(part) > highest) highest = offset(part);
    }
    const auto weight = [&](int64_t part) { return counts(part) ? std::exp2(offset(part) - highest) : 0; };
    for (int64_t part = 0; part < parts.count; ++part) {
      wrong += parts.total.get()[part * parts.batch + n] * weight(part);
    }
    const double own = std::exp2(right - highest), all = own + wrong;
    const double mean = 1 / (set.temperature * static_cast<double>(batch));
    const double missing = -wrong / all * mean;
    if (by_query) {
      T* __restrict out = by_query + n * dim;
      for (int64_t c = 0; c < dim; ++c) out[c] = static_cast<T>(missing * static_cast<double>(positive.at(n, c)));
      for (int64_t part = 0; part < parts.count; ++part) {
        const T factor = static_cast<T>(weight(part) / all * mean);
        const T* __restrict added = parts.added_to(part, n);
        for (int64_t c = 0; c < dim; ++c) out[c] += factor * added[c];
      }
    }
    if (by_positive) {
      T* __restrict out = by_positive + n * dim;
      for (int64_t c = 0; c < dim; ++c) out[c] = static_cast<T>(missing * static_cast<double>(query.at(n, c)));
    }
    // log(all / own), exact where either is tiny.
    return wrong > own ? std::log(all) + (highest - right) * std::numbers::ln2 : std::log1p(wrong / own);
  }
};

// Calls function(S{}) for what the queue may be stored in when queries are Q.
template <class Q, class Function>
void for_stored(ScalarType stored, const Function& function) {
  if constexpr (std::is_same_v<Q, float> || std::is_same_v<Q, double>) {
    for_dtype(stored, "info_nce", [&](auto zero) {
      if constexpr (!(std::is_same_v<Q, float> && std::is_same_v<decltype(zero), double>)) function(zero);
    });
  } else {
    function(Q{});
  }
}

std::tuple<Tensor, Tensor, Tensor> info_nce(const Tensor& query, const Tensor& positive, const Tensor& queue,
                                            double temperature, bool by_query, bool by_positive) {
  const Settings set{info_nce_sizes(query, positive, queue, temperature), temperature, by_query, by_positive};
  const auto [batch, dim, keys] = set.sizes;
  const ScalarType wide = compute_dtype(query.scalar_type());
  const auto derivative = [&](bool wanted) {
    return torch::stable::empty({wanted ? batch : 0, dim}, wide, std::nullopt, query.device());
  };
  const Tensor loss = empty(query, {}), to_query = derivative(by_query), to_positive = derivative(by_positive);
  for_dtype(query.scalar_type(), "info_nce", [&](auto zero) {
    using Q = decltype(zero);
    using T = typename Compute<Q>::type;
    double mean = 0;
    if (batch > 0) {
      for_stored<Q>(queue.scalar_type(), [&](auto stored) {
        using S = decltype(stored);
        mean = Job<Q, S, T>{set,
                            Rows<Q>(query),
                            Rows<Q>(positive),
                            Rows<S>(queue),
                            by_query ? static_cast<T*>(to_query.mutable_data_ptr()) : nullptr,
                            by_positive ? static_cast<T*>(to_positive.mutable_data_ptr()) : nullptr}
                   .run();
      });
    }
    *static_cast<Q*>(loss.mutable_data_ptr()) = static_cast<Q>(static_cast<T>(mean));
  });
  return {loss, to_query, to_positive};
}

std::tuple<Tensor, Tensor> info_nce_backward(const Tensor& gradient, const Tensor& by_query, const Tensor& by_positive,
                                             const std::optional<Tensor>& query,
                                             const std::optional<Tensor>& positive) {
  STD_TORCH_CHECK(gradient.numel() == 1, "info_nce_backward: gradient must be a scalar, got ", gradient.numel(),
                  " elements");
  const auto scaled = [&](const Tensor& derivative_, const std::optional<Tensor>& input) {
    const ScalarType dtype = input ? input->scalar_type() : gradient.scalar_type();
    STD_TORCH_CHECK(dtype == gradient.scalar_type() && derivative_.scalar_type() == compute_dtype(dtype),
                    "info_nce_backward: the dtypes do not belong together");
    const Tensor derivative = torch::stable::contiguous(derivative_);
    const Tensor out = empty(gradient, derivative.sizes());
    for_dtype(dtype, "info_nce_backward", [&](auto zero) {
      using Q = decltype(zero);
      using T = typename Compute<Q>::type;
      const T factor = static_cast<T>(*static_cast<const Q*>(gradient.const_data_ptr()));
      const T* from = static_cast<const T*>(derivative.const_data_ptr());
      Q* to = static_cast<Q*>(out.mutable_data_ptr());
      for (int64_t i = 0; i < derivative.numel(); ++i) to[i] = static_cast<Q>(factor * from[i]);
    });
    return out;
  };
  return {scaled(by_query, query), scaled(by_positive, positive)};
}

}  // namespace
}  // namespace deocc

STABLE_TORCH_LIBRARY_IMPL(deocc, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&deocc::info_nce));
  m.impl("info_nce_backward", TORCH_BOX(&deocc::info_nce_backward));
}
