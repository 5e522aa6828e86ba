// The op L2lLstmStep: one step of stacked LSTM layers and a linear head on N columns, on a CPU.
//
// As cells.step, but a block of columns goes through all of it while it is in registers and the
// first-level cache: gates are never written to memory. Feature-major: every tensor is [rows, N]. Of
// TensorFlow, only its C interface is used.
//
//   inputs   features [F, N]; kernel [4 * units, inputs + units] and bias [4 * units, 1] of each
//            layer, head [outputs, units], head bias [outputs, 1]; hidden and cell [units, N] of
//            each layer, in float32 or bfloat16
//   outputs  [outputs, N]; new hidden and cell of each layer
//
// A call runs on one thread: the caller cuts columns into as many calls as there are cores.
//
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "lstm.h"
#include "tensors.h"
#include "vectors.h"

#define L2L_TF_OP "L2lLstmStep" L2L_TF_SUFFIX

namespace {

// A block has kVectors vectors of kLanes columns. The four gates of a unit, for the whole block,
// are summed in 4 * kVectors registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kBlock = kLanes * kVectors;

// Rows of a block in a [rows, N] tensor.
template <typename T>
struct Rows {
  T* start;
  int64_t stride;  // N
  T* At(int row, int vector) const { return start + row * stride + vector * kLanes; }
};

template <typename T>
void Prefetch(const Rows<const T>& rows, int row) {
  const char* next = reinterpret_cast<const char*>(rows.At(row, kVectors));
  for (size_t byte = 0; byte < kBlock * sizeof(T); byte += kCacheLine) {
    __builtin_prefetch(next + byte);
  }
}

template <bool kStreams, typename T>
inline void StoreState(Vector value, T* to) {
  if (kStreams) {
    Stream(value, to);
  } else {
    Store(value, to);
  }
}

// One layer on one block. `inputs`, [layer.inputs, kBlock], ends with the old hidden state; the
// new one is also written to `top`, [units, kBlock], for what comes above.
template <typename T, bool kStreams>
void Step(const Layer& layer, const Vector* inputs, Rows<const T> hidden, Rows<const T> cell,
          Rows<T> new_hidden, Rows<T> new_cell, Vector* top) {
  const float* weights = layer.weights.data();
  for (int unit = 0; unit < layer.units; ++unit) {
    // The next block's state, while this one is computed.
    Prefetch(hidden, unit);
    Prefetch(cell, unit);
    Vector gates[4][kVectors];
    for (int gate = 0; gate < 4; ++gate) {
      for (int v = 0; v < kVectors; ++v) gates[gate][v] = Vector{} + weights[gate];
    }
    weights += 4;
    const Vector* input = inputs;
#pragma GCC unroll 4
    for (int i = 0; i < layer.inputs; ++i, input += kVectors, weights += 4) {
      for (int gate = 0; gate < 4; ++gate) {
        for (int v = 0; v < kVectors; ++v) gates[gate][v] += weights[gate] * input[v];
      }
    }
    // sum = ((1 + forget) old + (1 + write) candidate) / 2, output = (1 + read) tanh(sum) / 2: each
    // over one denominator, as divisions cost more than products. Stage by stage, so that a long
    // chain of operations on one vector always has others beside it.
    Fraction sum[kVectors], output[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Fraction write = Tanh(gates[0][v]), forget = Tanh(gates[1][v]);
      Fraction candidate = Tanh(gates[2][v]), read = Tanh(gates[3][v]);
      Vector old = Load(cell.At(unit, v));
      Vector under = write.under * candidate.under;
      sum[v].over = (forget.under + forget.over) * old * under +
                    (write.under + write.over) * candidate.over * forget.under;
      sum[v].under = under * forget.under;
      output[v] = {read.under + read.over, read.under};
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[v].over *= 0.5f * Reciprocal(sum[v].under);
      StoreState<kStreams>(sum[v].over, new_cell.At(unit, v));
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Fraction squashed = Tanh(sum[v].over);
      output[v].over *= squashed.over;
      output[v].under *= squashed.under;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vector hidden = output[v].over * (0.5f * Reciprocal(output[v].under));
      StoreState<kStreams>(hidden, new_hidden.At(unit, v));
      top[unit * kVectors + v] = hidden;
    }
  }
}

// All of a step on one block: `states` and `new_states` are hidden, cell, hidden, cell, ...
template <typename T, bool kStreams>
void StepBlock(const Stack& stack, Rows<const float> features, const Rows<const T>* states,
               Rows<float> outputs, const Rows<T>* new_states, Vector* inputs, Vector* above) {
  for (int i = 0; i < stack.num_features; ++i) {
    for (int v = 0; v < kVectors; ++v) inputs[i * kVectors + v] = Load(features.At(i, v));
  }
  for (size_t l = 0; l < stack.layers.size(); ++l) {
    const Layer& layer = stack.layers[l];
    Rows<const T> hidden = states[2 * l], cell = states[2 * l + 1];
    Vector* own = inputs + (layer.inputs - layer.units) * kVectors;
    for (int unit = 0; unit < layer.units; ++unit) {
      for (int v = 0; v < kVectors; ++v) own[unit * kVectors + v] = Load(hidden.At(unit, v));
    }
    Step<T, kStreams>(layer, inputs, hidden, cell, new_states[2 * l], new_states[2 * l + 1],
                      above);
    std::swap(inputs, above);
  }
  const int width = stack.layers.back().units;
  for (int row = 0; row < stack.num_outputs; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      Vector sum = Vector{} + stack.head_bias[row];
      for (int i = 0; i < width; ++i) sum += stack.head[row * width + i] * inputs[i * kVectors + v];
      Store(sum, outputs.At(row, v));
    }
  }
}

// The columns that do not fill a block, in one of their own.
template <typename T>
class Padded {
 public:
  Padded(int rows) : values_(rows * kBlock) {}
  Rows<T> rows() { return {values_.data(), kBlock}; }
  Rows<const T> const_rows() const { return {values_.data(), kBlock}; }
  void Fill(const T* from, int64_t stride, int64_t columns) {
    for (size_t row = 0; row * kBlock < values_.size(); ++row) {
      std::memcpy(&values_[row * kBlock], from + row * stride, columns * sizeof(T));
    }
  }
  void Empty(T* to, int64_t stride, int64_t columns) const {
    for (size_t row = 0; row * kBlock < values_.size(); ++row) {
      std::memcpy(to + row * stride, &values_[row * kBlock], columns * sizeof(T));
    }
  }

 private:
  std::vector<T> values_;
};

// Whether the new states go past the caches. If they do not fit there, each line of theirs would be
// read from memory before it is written.
template <typename T>
bool Streams(const Stack& stack, int64_t n, const std::vector<T*>& new_states) {
  constexpr int64_t kCache = 4 << 20;  // bytes, of one core
  int64_t bytes = 0;
  for (const Layer& layer : stack.layers) bytes += 2 * layer.units * n * sizeof(T);
  bool aligned = n * sizeof(T) % kCacheLine == 0;
  for (T* state : new_states) aligned &= reinterpret_cast<uintptr_t>(state) % kCacheLine == 0;
  return aligned && bytes > kCache;
}

template <typename T>
void StepColumns(const Stack& stack, int64_t n, const float* features,
                 const std::vector<const T*>& states, float* outputs,
                 const std::vector<T*>& new_states) {
  const int num_states = states.size();
  std::vector<Vector> inputs(stack.Widest() * kVectors), above(inputs);
  std::vector<Rows<const T>> old(num_states);
  std::vector<Rows<T>> updated(num_states);
  const bool streams = Streams(stack, n, new_states);

  int64_t first = 0;
  for (; first + kBlock <= n; first += kBlock) {
    for (int s = 0; s < num_states; ++s) {
      old[s] = {states[s] + first, n};
      updated[s] = {new_states[s] + first, n};
    }
    const auto step = streams ? StepBlock<T, true> : StepBlock<T, false>;
    step(stack, {features + first, n}, old.data(), {outputs + first, n}, updated.data(),
         inputs.data(), above.data());
  }
#if defined(__AVX512F__)
  if (streams) _mm_sfence();  // for whoever reads the new states
#endif
  const int64_t rest = n - first;
  if (rest == 0) return;
  Padded<float> last_features(stack.num_features), last_outputs(stack.num_outputs);
  last_features.Fill(features + first, n, rest);
  std::vector<Padded<T>> last, last_updated;
  for (int s = 0; s < num_states; ++s) {
    last.emplace_back(stack.layers[s / 2].units);
    last[s].Fill(states[s] + first, n, rest);
    last_updated.emplace_back(stack.layers[s / 2].units);
  }
  for (int s = 0; s < num_states; ++s) {
    old[s] = last[s].const_rows();
    updated[s] = last_updated[s].rows();
  }
  StepBlock<T, false>(stack, last_features.const_rows(), old.data(), last_outputs.rows(),
                      updated.data(), inputs.data(), above.data());
  last_outputs.Empty(outputs + first, n, rest);
  for (int s = 0; s < num_states; ++s) last_updated[s].Empty(new_states[s] + first, n, rest);
}

// TensorFlow's side.

template <typename T>
void Run(const Stack& stack, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) {
  const int first_state = inputs.size() - outputs.size() + 1;
  std::vector<const T*> states;
  std::vector<T*> new_states;
  for (size_t s = 1; s < outputs.size(); ++s) {
    states.push_back(Data<T>(inputs[first_state + s - 1]));
    new_states.push_back(Data<T>(outputs[s]));
  }
  StepColumns<T>(stack, Size(inputs[0], 1), Data<float>(inputs[0]), states, Data<float>(outputs[0]),
                 new_states);
}

void Compute(void*, TF_OpKernelContext* context) {
  Status status(TF_NewStatus(), TF_DeleteStatus);
  auto failed = [&] {
    if (TF_GetCode(status.get()) == TF_OK) return false;
    TF_OpKernelContext_Failure(context, status.get());
    return true;
  };
  const int num_inputs = TF_NumInputs(context);
  const int num_layers = (num_inputs - 3) / 4;
  std::vector<Tensor> inputs, outputs;
  for (int i = 0; i < num_inputs; ++i) {
    TF_Tensor* tensor = nullptr;
    TF_GetInput(context, i, &tensor, status.get());
    if (failed()) return;
    inputs.emplace_back(tensor, TF_DeleteTensor);
  }
  // There are as many new states as states, so the rest are weights.
  const int num_states = 2 * num_layers;
  const bool is_complete = num_layers > 0 && num_inputs == 4 * num_layers + 3 &&
                           TF_NumOutputs(context) == num_states + 1;
  std::string mismatch = "expected two weights and two states of each layer, and a head";
  if (is_complete) {
    mismatch = TF_NumDims(inputs[0].get()) != 2
                   ? "the features must have two axes"
                   : Mismatch(&inputs[1], &inputs[2 * num_layers + 3], num_layers,
                              Size(inputs[0], 0), Size(inputs[0], 1));
  }
  if (!mismatch.empty()) {
    TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, (L2L_TF_OP ": " + mismatch).c_str());
    failed();
    return;
  }
  const int64_t n = Size(inputs[0], 1);
  const int first_state = 2 * num_layers + 3;
  const TF_DataType type = TF_TensorType(inputs[first_state].get());
  for (int o = 0; o < 1 + num_states; ++o) {
    const bool is_state = o > 0;
    const int64_t rows = Size(inputs[is_state ? first_state + o - 1 : first_state - 2], 0);
    const int64_t shape[] = {rows, n};
    const size_t bytes = rows * n * (is_state && type == TF_BFLOAT16 ? 2 : 4);
    TF_Tensor* tensor = TF_AllocateOutput(context, o, is_state ? type : TF_FLOAT, shape, 2, bytes,
                                          status.get());
    if (failed()) return;
    outputs.emplace_back(tensor, TF_DeleteTensor);
  }
  const Stack stack = ReadStack(&inputs[1], num_layers, Size(inputs[0], 0));
  if (type == TF_BFLOAT16) {
    Run<Bfloat16>(stack, inputs, outputs);
  } else {
    Run<float>(stack, inputs, outputs);
  }
}

const bool registered = Register({
    L2L_TF_OP,
    nullptr,
    Compute,
    nullptr,
    {"W: int", "S: int", "T: {float, bfloat16}"},
    {"features: float", "weights: W * float", "states: S * T"},
    {"outputs: float", "new_states: S * T"},
});

}  // namespace
