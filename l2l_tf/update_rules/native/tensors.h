// TensorFlow's side of a kernel: what its C interface gives, freed by itself.

#ifndef L2L_TF_TENSORS_H_
#define L2L_TF_TENSORS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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

// An op and its kernel on a CPU. Attributes and inputs are in the order of the call.
struct Definition {
  std::string name;
  void* (*create)(TF_OpKernelConstruction*);  // or null, as what deletes it
  void (*compute)(void*, TF_OpKernelContext*);
  void (*destroy)(void*);
  std::vector<std::string> attributes, inputs, outputs;
};

// Whether TensorFlow has taken it. Nothing is said of the shapes of its outputs.
inline bool Register(const Definition& definition) {
  Status status(TF_NewStatus(), TF_DeleteStatus);
  const char* name = definition.name.c_str();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(name);
  for (const std::string& own : definition.attributes) {
    TF_OpDefinitionBuilderAddAttr(op, own.c_str());
  }
  for (const std::string& own : definition.inputs) TF_OpDefinitionBuilderAddInput(op, own.c_str());
  for (const std::string& own : definition.outputs) {
    TF_OpDefinitionBuilderAddOutput(op, own.c_str());
  }
  auto unknown_shapes = [](TF_ShapeInferenceContext* context, TF_Status* status) {
    TF_ShapeInferenceContextSetUnknownShape(context, status);
  };
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, unknown_shapes);
  TF_RegisterOpDefinition(op, status.get());
  if (TF_GetCode(status.get()) != TF_OK) return false;
  TF_RegisterKernelBuilder(name,
                           TF_NewKernelBuilder(name, "CPU", definition.create, definition.compute,
                                               definition.destroy),
                           status.get());
  return TF_GetCode(status.get()) == TF_OK;
}

}  // namespace

#endif
