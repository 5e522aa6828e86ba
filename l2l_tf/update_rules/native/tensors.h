// TensorFlow's side of a kernel: what its C interface gives, freed by itself.

#ifndef L2L_TF_TENSORS_H_
#define L2L_TF_TENSORS_H_

#include <cstdint>
#include <memory>

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"

// Of an op's name: another one lets a process load builds for several architectures, as tests do.
#if !defined(L2L_TF_SUFFIX)
#define L2L_TF_SUFFIX ""
#endif

namespace {

using Status = std::unique_ptr<TF_Status, decltype(&TF_DeleteStatus)>;
using Tensor = std::unique_ptr<TF_Tensor, decltype(&TF_DeleteTensor)>;

inline int64_t Size(const Tensor& tensor, int axis) { return TF_Dim(tensor.get(), axis); }

template <typename T>
T* Data(const Tensor& tensor) {
  return static_cast<T*>(TF_TensorData(tensor.get()));
}

// Also of an op for which nothing is said of the shapes of its outputs.
inline void UnknownShapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

}  // namespace

#endif
