// The exponential function on vectors of simd.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace deocc {

template <class V>
DEOCC_INLINE typename V::type exponential(const typename V::type& argument) {
  typename V::type x = argument;
  if constexpr (std::is_same_v<typename V::Element, float>) {
    typedef int32_t Integers __attribute__((vector_size(sizeof x)));
    const float least = -87.f, round = 12582912.f;  // adding and taking away 1.5 * 2^23 rounds to an integer
    x = x < least ? least + typename V::type{} : x;
    const typename V::type shifted = x * 1.44269504088896341f + round;
    const typename V::type n = shifted - round;
    const typename V::type r = x - n * 0.693359375f + n * 2.12194440e-4f;
    typename V::type p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.f;
    // The integer stands in the low bits of `shifted`; moved to the exponent it is a power of 2.
    const Integers power = ((Integers)shifted << 23) + (127 << 23);
    return p * (typename V::type)power;
  } else {
    for (int lane = 0; lane < V::lanes; ++lane) x[lane] = std::exp(x[lane]);
    return x;
  }
}

}  // namespace deocc
