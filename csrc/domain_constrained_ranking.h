// domain_constrained_ranking: images against identity centres in two domains, full (0) and masked (1) faces.
//
//   features   (N, D)
//   labels     (N) int64, from 0 to identities - 1
//   domains    (N) bool
//   centers    (2, identities, D), of any floating-point dtype
//   known      (2, identities) bool: the centres that may be read
//
// With x and l the domain and the identity of image i, C[x, l] its centre, and d the Euclidean distance:
//   single[i] = max(d(C[x, l], i) + margin_single - min over j of d(C[x, l], j), 0)
//               j: the images of domain x and of other identities
//   cross[i]  = max(max over j of d(i, j) + margin_cross - min over k of d(i, C[x, k]), 0)
//               j: the images of identity l in the other domain
//               k: known identities but l; all of them (everywhere), or those that have an image of domain x here
//   loss      = mean over i of single[i] + cross_factor * cross[i]
// A part without its centre, or with nothing to take the minimum or maximum over, is 0. Of equals the first one counts:
// in the order of the images or, everywhere, of the identities. Without images the loss is 0.
//
// Results: the loss, and its derivative by features, (N, D), in the dtype that is computed in, or (0, D) if that is not
// wanted. Nothing flows to centers.
// domain_constrained_ranking_backward: gradient () of the loss times that, in the gradient's dtype. The features are not
// looked at: they are an argument so that autograd notices when a second derivative is asked for.
//
// Half precision is computed in float and rounded once.
#pragma once

#include "tensor.h"

namespace deocc {

struct RankingSizes {
  int64_t images, dim, identities;
};

// Throws unless the tensors fit together.
inline RankingSizes ranking_sizes(const Tensor& features, const Tensor& labels, const Tensor& domains,
                                  const Tensor& centers, const Tensor& known) {
  STD_TORCH_CHECK(features.dim() == 2 && labels.dim() == 1 && domains.dim() == 1 && centers.dim() == 3 &&
                      known.dim() == 2,
                  "domain_constrained_ranking: features, labels, domains, centers and known must have 2, 1, 1, 3 and 2 "
                  "dimensions, got ",
                  features.dim(), ", ", labels.dim(), ", ", domains.dim(), ", ", centers.dim(), " and ", known.dim());
  STD_TORCH_CHECK(labels.size(0) == features.size(0) && domains.size(0) == features.size(0),
                  "domain_constrained_ranking: labels and domains must have one entry for each of ", features.size(0),
                  " features, got ", labels.size(0), " and ", domains.size(0));
  STD_TORCH_CHECK(centers.size(0) == 2 && centers.size(2) == features.size(1),
                  "domain_constrained_ranking: centers must have shape (2, identities, ", features.size(1), "), got (",
                  centers.size(0), ", ", centers.size(1), ", ", centers.size(2), ")");
  STD_TORCH_CHECK(features.size(1) > 0, "domain_constrained_ranking: features must have at least one dimension");
  STD_TORCH_CHECK(known.size(0) == 2 && known.size(1) == centers.size(1),
                  "domain_constrained_ranking: known must have shape (2, ", centers.size(1), "), got (", known.size(0),
                  ", ", known.size(1), ")");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long && domains.scalar_type() == ScalarType::Bool &&
                      known.scalar_type() == ScalarType::Bool,
                  "domain_constrained_ranking: labels, domains and known must be int64, bool and bool, got ",
                  torch::headeronly::toString(labels.scalar_type()), ", ",
                  torch::headeronly::toString(domains.scalar_type()), " and ",
                  torch::headeronly::toString(known.scalar_type()));
  STD_TORCH_CHECK(labels.device() == features.device() && domains.device() == features.device() &&
                      centers.device() == features.device() && known.device() == features.device(),
                  "domain_constrained_ranking: all tensors must be on one device");
  return {features.size(0), features.size(1), centers.size(1)};
}

}  // namespace deocc
