// info_nce: the mean over n of -log(exp(q[n].p[n] / t) / (exp(q[n].p[n] / t) + sum over k of exp(q[n].queue[k] / t)))
//
//   query q, positive p  (N, D), of one dtype
//   queue                (K, D), of that dtype or of one that converts to it without loss
//   temperature t        > 0
//
// Results: the loss, a scalar of the query's dtype, 0 for N = 0; and what is asked for of its derivatives by query and
// positive, each (N, D) or else (0, D), in float for half precision. With P the softmax of a query's 1 + K scores,
//
//   by query     (sum over k of P[k] queue[k] - (1 - P[positive]) p) / (t N)
//   by positive  -(1 - P[positive]) q / (t N)
//
// They are made together with the loss, so that nothing of the queue is needed afterwards. No kernel writes the
// N x (1 + K) scores to memory.
//
// info_nce_backward: these derivatives times the gradient of the loss, rounded to the dtype of query and positive.
//
// bfloat16 and float16 are computed in float and rounded once.
#pragma once

#include <cmath>
#include <optional>

#include "tensor.h"

namespace deocc {

struct InfoNceSizes {
  int64_t batch, dim, keys;
};

// Throws unless the tensors fit together.
inline InfoNceSizes info_nce_sizes(const Tensor& query, const Tensor& positive, const Tensor& queue,
                                   double temperature) {
  STD_TORCH_CHECK(query.dim() == 2 && positive.dim() == 2 && queue.dim() == 2,
                  "info_nce: query, positive and queue must have 2 dimensions, got ", query.dim(), ", ",
                  positive.dim(), " and ", queue.dim());
  STD_TORCH_CHECK(positive.size(0) == query.size(0) && positive.size(1) == query.size(1),
                  "info_nce: positive must have the query's shape (", query.size(0), ", ", query.size(1), "), got (",
                  positive.size(0), ", ", positive.size(1), ")");
  STD_TORCH_CHECK(queue.size(1) == query.size(1) && query.size(1) > 0,
                  "info_nce: queue must have as many columns as the query, and at least one, got ", queue.size(1),
                  " and ", query.size(1));
  const ScalarType dtype = query.scalar_type(), stored = queue.scalar_type();
  STD_TORCH_CHECK(positive.scalar_type() == dtype, "info_nce: query and positive must have one dtype, got ",
                  torch::headeronly::toString(dtype), " and ", torch::headeronly::toString(positive.scalar_type()));
  const bool half = stored == ScalarType::BFloat16 || stored == ScalarType::Half;
  STD_TORCH_CHECK(stored == dtype || (half && (dtype == ScalarType::Float || dtype == ScalarType::Double)) ||
                      (stored == ScalarType::Float && dtype == ScalarType::Double),
                  "info_nce: the queue's dtype must convert to the query's without loss, got ",
                  torch::headeronly::toString(stored), " and ", torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(positive.device() == query.device() && queue.device() == query.device(),
                  "info_nce: query, positive and queue must be on one device");
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature), "info_nce: temperature must be positive, got ",
                  temperature);
  return {query.size(0), query.size(1), queue.size(0)};
}

// What a value of this dtype is computed in.
inline ScalarType compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace deocc
