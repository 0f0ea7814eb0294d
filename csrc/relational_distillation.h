// relational_distillation: the pairs and triplets of a batch ought to lie to each other as a teacher's do.
//
//   student  (N, Ds)
//   teacher  (N, Dt)
//   loss     ()      distance * loss of distances + angle * loss of angles; a half with the weight 0 is left out
//
// With the distances d[i,j] = |x[i] - x[j]| of student (s) and teacher (t), and h the Huber loss with delta 1:
//   loss of distances = mean over i, j    of h(ds[i,j] / mean(ds) - dt[i,j] / mean(dt))    means over those not 0
//   loss of angles    = mean over i, j, k of h(as[i,j,k] - at[i,j,k])
//   a[i,j,k]          = <x[i] - x[j], x[k] - x[j]> u[i,j] u[k,j]
//   u[i,j]            = 0 where d[i,j] is 0, else 1 / max(d[i,j], 1e-12, kNear * sqrt(|x[i]|^2 + |x[j]|^2))
//
// All of it comes from the Gram matrix G of the centred rows: <x[i] - x[j], x[k] - x[j]> = G[i,k] - G[i,j] - G[j,k] +
// G[j,j]. That cancels where points are near each other, so everything is computed in double, from the centring on; and
// pairs that are nearer than kClose times their norms have their distance taken from their difference. What remains
// is an error of about 1e-16 |x|^2 / (d[i,j] d[k,j]) in the angles: it is what kNear, where it is 0.1, keeps bounded.
//
// The gradient is gradient[a] = sum over b of M[a,b] x[b], where M is symmetric, (N, N), and its rows add up to 0. With
// W[i,j,k] = h'(as - at) u[i,j] u[k,j] (student's), all sums over one index that the left side lacks,
//   S[i,k] = sum W[i,j,k]    R[i,j] = sum W[i,j,k]    V[i,j] = u[i,j]^2 sum h'(as - at) as[i,j,k]
//   M      = 2 angle / N^3 (S - R - R' + V + V') + distance / N^2 * (-2) (h'(...) / mean(ds) - C) / ds   off the diagonal
//   C      = sum of h'(...) ds / (mean(ds)^2 * number of pairs that differ)
// V is 0 where the maximum in u is not d[i,j].
//
// relational_distillation gives the loss and, where it is asked for, M, in double; else M has shape (0, 0).
// relational_distillation_backward: gradient () times M x, from M and student.
#pragma once

#include "tensor.h"

namespace deocc {

constexpr double kLeast = 1e-12;   // the least length that a difference is divided by
constexpr double kNear = 3e-8;     // the same, relative to the norms of the two points
constexpr double kClose = 1e-3;    // separations under which a difference is taken, relative likewise

// Throws unless the tensors fit together.
inline void check_relations(const Tensor& student, const Tensor& teacher) {
  STD_TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2,
                  "relational_distillation: student and teacher must have 2 dimensions, got ", student.dim(), " and ",
                  teacher.dim());
  STD_TORCH_CHECK(teacher.size(0) == student.size(0), "relational_distillation: teacher must have the student's ",
                  student.size(0), " rows, got ", teacher.size(0));
  STD_TORCH_CHECK(teacher.scalar_type() == student.scalar_type(), "relational_distillation: one dtype is wanted, got ",
                  torch::headeronly::toString(student.scalar_type()), " and ",
                  torch::headeronly::toString(teacher.scalar_type()));
  STD_TORCH_CHECK(teacher.device() == student.device(),
                  "relational_distillation: student and teacher must be on one device");
}

inline void check_relations_backward(const Tensor& gradient, const Tensor& matrix, const Tensor& student) {
  STD_TORCH_CHECK(student.dim() == 2 && gradient.dim() == 0,
                  "relational_distillation_backward: student must have 2 dimensions and gradient none, got ",
                  student.dim(), " and ", gradient.dim());
  STD_TORCH_CHECK(matrix.dim() == 2 && matrix.size(0) == student.size(0) && matrix.size(1) == student.size(0) &&
                      matrix.scalar_type() == ScalarType::Double,
                  "relational_distillation_backward: matrix must be float64 of shape (N, N) for N = ", student.size(0),
                  "; it is empty when the loss was computed without its gradient");
  STD_TORCH_CHECK(gradient.scalar_type() == student.scalar_type(),
                  "relational_distillation_backward: one dtype is wanted, got ",
                  torch::headeronly::toString(gradient.scalar_type()), " and ",
                  torch::headeronly::toString(student.scalar_type()));
  STD_TORCH_CHECK(matrix.device() == student.device() && gradient.device() == student.device(),
                  "relational_distillation_backward: all tensors must be on one device");
}

}  // namespace deocc
