// Elements of any dtype as vectors of simd.h, of what they are computed in.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../tensor.h"
#include "simd.h"

namespace deocc {

// Half precision that lies in words, as c10::Half and c10::BFloat16 convert it.
template <class S, class Vec, class Words>
DEOCC_INLINE Vec widen(const Words& half) {
  if constexpr (std::is_same_v<S, torch::headeronly::BFloat16>) {
    return (Vec)(half << 16);
  } else {
    const Words sign = (half & 0x8000) << 16, rest = half << 17;
    const Vec normal = (Vec)((rest >> 4) + (0xe0u << 23)) * 0x1p-112f;
    const Vec tiny = (Vec)((rest >> 17) | (126u << 23)) - 0.5f;
    return (Vec)(sign | (Words)(rest < (1u << 27) ? tiny : normal));
  }
}

// Rounds to nearest, even; NaN stays NaN.
template <class S, class Words, class Vec>
DEOCC_INLINE Words narrow(const Vec& value) {
  const Words bits = (Words)value, doubled = bits + bits;
  if constexpr (std::is_same_v<S, torch::headeronly::BFloat16>) {
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? Words{} + 0x7fc0 : rounded;
  } else {
    Words bias = doubled & 0xff000000;
    bias = bias < 0x71000000u ? Words{} + 0x71000000u : bias;
    const Vec magnitude = (Vec)(bits & 0x7fffffff) * 0x1p+112f * 0x1p-110f;
    const Words moved = (Words)((Vec)((bias >> 1) + 0x07800000u) + magnitude);
    const Words rounded = ((moved >> 13) & 0x7c00) + (moved & 0xfff);
    return ((bits >> 16) & 0x8000) | (doubled > 0xff000000u ? Words{} + 0x7e00 : rounded);
  }
}

template <class V, class S>
DEOCC_INLINE typename V::type load_as(const S* from) {
  if constexpr (std::is_same_v<S, typename V::Element>) {
    return V::load(from);
  } else {
    typename Vector<uint16_t, V::lanes * 2>::type halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    using Words = typename Vector<uint32_t, V::lanes * 4>::type;
    return widen<S, typename V::type>(__builtin_convertvector(halves, Words));
  }
}

template <class V, class S>
DEOCC_INLINE void store_as(S* to, const typename V::type& value) {
  if constexpr (std::is_same_v<S, typename V::Element>) {
    V::store(to, value);
  } else {
    const auto words = narrow<S, typename Vector<uint32_t, V::lanes * 4>::type>(value);
    const auto halves = __builtin_convertvector(words, typename Vector<uint16_t, V::lanes * 2>::type);
    __builtin_memcpy(to, &halves, sizeof halves);
  }
}

}  // namespace deocc
