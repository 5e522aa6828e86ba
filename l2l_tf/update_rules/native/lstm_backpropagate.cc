// The op L2lLstmBackpropagate: the derivatives of the sum of <updates, cotangents> over T steps of
// stacked LSTM layers and a linear head, by all weights, on a CPU.
//
// As cells.backpropagate. A block of columns goes forward through all steps and back again, with what
// is kept of its steps in a core's second-level cache; gates are computed once. Weights' gradients
// are products over a block's columns and steps, summed lane by lane in float32 until a call's end.
//
//   inputs   features [T, F, N]; kernel and bias of each layer, head [1, units], head bias [1, 1];
//            hidden and cell [units, N] of each layer before the first step; cotangents [T, N]
//   attrs    an update is output_scale times the head's output, or, if bounded, times its tanh
//   outputs  the derivatives by the weights, in their order
//
// A call runs on one thread, as L2lLstmStep does. Sums are in an order that N alone decides.
//
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "lstm.h"
#include "tensors.h"
#include "vectors.h"

#define L2L_TF_OP "L2lLstmBackpropagate" L2L_TF_SUFFIX

namespace {

constexpr int kVectors = 2;  // of a block
constexpr int kBlock = kLanes * kVectors;
constexpr int kRows = 4;  // of a product, summed in kRows * kVectors registers
// Inputs whose gradients by the four gates of a unit are summed at once, in 4 * kTile registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTile = 6;
#else
constexpr int kTile = 3;
#endif

using Vectors = std::vector<Vector>;

constexpr int RoundUp(int number, int multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

inline Vector Divide(Fraction x) { return x.over * Reciprocal(x.under); }

// Up to kBlock columns, zeros beyond.
inline void LoadBlock(const float* from, int columns, Vector* to) {
  float values[kBlock] = {};
  std::memcpy(values, from, columns * sizeof(float));
  std::memcpy(to, values, sizeof(values));
}

// sums[r] += sum over i of weights[i, r] inputs[i]. weights: [count, kRows]; inputs: [count, kBlock].
inline void AddProducts(const float* weights, const Vector* inputs, int count,
                        Vector (&sums)[kRows][kVectors]) {
#pragma GCC unroll 4
  for (int i = 0; i < count; ++i, inputs += kVectors, weights += kRows) {
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sums[row][v] += weights[row] * inputs[v];
    }
  }
}

// One layer on one block: its steps, and the sums of its weights' gradients. Rows of kBlock columns.
class LayerSteps {
 public:
  // `first` is the first of its inputs whose cotangents are wanted.
  LayerSteps(const Layer& layer, int first, int num_steps)
      : layer_(layer),
        units_(layer.units),
        first_(first),
        rows_(RoundUp(1 + layer.inputs, kTile)),
        num_steps_(num_steps),
        inputs_((num_steps + 1) * rows_ * kVectors),
        gates_(num_steps * 4 * units_ * kVectors),
        cells_((num_steps + 1) * units_ * kVectors),
        squashed_(num_steps * units_ * kVectors),
        of_inputs_(RoundUp(layer.inputs - first, kRows) * kVectors),
        of_cell_(units_ * kVectors),
        sums_(units_ * rows_ * 4),
        transposed_(RoundUp(layer.inputs - first, kRows) * 4 * units_) {
    for (int t = 0; t < num_steps; ++t) {
      for (int v = 0; v < kVectors; ++v) inputs_[t * rows_ * kVectors + v] = Vector{} + 1.0f;
    }
    for (int input = first; input < layer.inputs; ++input) {
      for (int unit = 0; unit < units_; ++unit) {
        for (int gate = 0; gate < 4; ++gate) {
          const int group = (input - first) / kRows, row = (input - first) % kRows;
          transposed_[((group * units_ + unit) * 4 + gate) * kRows + row] = Weight(unit, input, gate);
        }
      }
    }
  }

  // Rows of what a step sees, those of the layer below first, then its own hidden state.
  Vector* Inputs(int t) { return &inputs_[(t * rows_ + 1) * kVectors]; }
  Vector* Hidden(int t) { return Inputs(t) + (layer_.inputs - units_) * kVectors; }
  Vector* Cell(int t) { return &cells_[t * units_ * kVectors]; }

  // Step t. The new hidden state is also written to `above`, unless that is null.
  void Forward(int t, Vector* above) {
    const float* weights = layer_.weights.data();
    const Vector *inputs = Inputs(t), *old = Cell(t);
    Vector *gates = Gates(t), *cell = Cell(t + 1), *hidden = Hidden(t + 1);
    Vector* squashed = &squashed_[t * units_ * kVectors];
    for (int unit = 0; unit < units_; ++unit) {
      Vector sums[kRows][kVectors];
      for (int gate = 0; gate < 4; ++gate) {
        for (int v = 0; v < kVectors; ++v) sums[gate][v] = Vector{} + weights[gate];
      }
      AddProducts(weights + 4, inputs, layer_.inputs, sums);
      weights += 4 * (1 + layer_.inputs);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int at = unit * kVectors + v;
        Vector write = Divide(Tanh(sums[0][v])), forget = Divide(Tanh(sums[1][v]));
        Vector candidate = Divide(Tanh(sums[2][v])), read = Divide(Tanh(sums[3][v]));
        cell[at] = 0.5f * ((1.0f + forget) * old[at] + (1.0f + write) * candidate);
        squashed[at] = Divide(Tanh(cell[at]));
        hidden[at] = 0.5f * (1.0f + read) * squashed[at];
        if (above) above[at] = hidden[at];
        Vector* of_unit = gates + unit * 4 * kVectors + v;
        of_unit[0] = write;
        of_unit[kVectors] = forget;
        of_unit[2 * kVectors] = candidate;
        of_unit[3 * kVectors] = read;
      }
    }
  }

  // Before the last step is backpropagated.
  void Begin() {
    of_inputs_.assign(of_inputs_.size(), Vector{});
    of_cell_.assign(of_cell_.size(), Vector{});
  }

  // From the cotangents of the hidden state by what is above to those of step t's gates, which take
  // the gates' place, of its inputs, and of the old cell.
  void Backward(int t, const Vector* of_hidden) {
    const Vector* of_next = &of_inputs_[(layer_.inputs - units_ - first_) * kVectors];
    const Vector *old = Cell(t), *squashed_of_step = &squashed_[t * units_ * kVectors];
    Vector* gates = Gates(t);
    for (int unit = 0; unit < units_; ++unit) {
      for (int v = 0; v < kVectors; ++v) {
        const int at = unit * kVectors + v;
        Vector* of_unit = gates + unit * 4 * kVectors + v;
        Vector write = of_unit[0], forget = of_unit[kVectors];
        Vector candidate = of_unit[2 * kVectors], read = of_unit[3 * kVectors];
        Vector squashed = squashed_of_step[at];
        Vector hidden = 0.5f * (of_hidden[at] + of_next[at]);
        Vector half = 0.5f * (of_cell_[at] + hidden * (1.0f + read) * (1.0f - squashed * squashed));
        of_unit[0] = half * candidate * (1.0f - write * write);
        of_unit[kVectors] = half * old[at] * (1.0f - forget * forget);
        of_unit[2 * kVectors] = half * (1.0f + write) * (1.0f - candidate * candidate);
        of_unit[3 * kVectors] = hidden * squashed * (1.0f - read * read);
        of_cell_[at] = half * (1.0f + forget);
      }
    }
    const float* weights = transposed_.data();
    for (Vector* to = of_inputs_.data(); to < of_inputs_.data() + of_inputs_.size();
         to += kRows * kVectors, weights += 4 * units_ * kRows) {
      Vector sums[kRows][kVectors] = {};
      AddProducts(weights, gates, 4 * units_, sums);
      std::memcpy(to, sums, sizeof(sums));
    }
  }

  // The cotangents of the inputs of the step that was backpropagated last.
  const Vector* OfInputs() const { return of_inputs_.data(); }

  // Adds the products of gates' cotangents and inputs of all steps.
  void AddGradients() {
    // A tile's inputs of all steps stay in the first-level cache.
    for (int first = 0; first < rows_; first += kTile) {
      for (int unit = 0; unit < units_; ++unit) {
        Vector sums[kTile][4] = {};
        const Vector* inputs = &inputs_[first * kVectors];
        const Vector* gates = &gates_[unit * 4 * kVectors];
        for (int t = 0; t < num_steps_; ++t) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
            for (int gate = 0; gate < 4; ++gate) {
#pragma GCC unroll 6
              for (int i = 0; i < kTile; ++i) {
                sums[i][gate] += inputs[i * kVectors + v] * gates[gate * kVectors + v];
              }
            }
          }
          inputs += rows_ * kVectors;
          gates += 4 * units_ * kVectors;
        }
        // A block's sum to that of the blocks before: less is rounded off than term by term.
        Vector* to = &sums_[(unit * rows_ + first) * 4];
        for (int i = 0; i < kTile; ++i) {
          for (int gate = 0; gate < 4; ++gate) to[i * 4 + gate] += sums[i][gate];
        }
      }
    }
  }

  // The sums of all blocks, as the kernel [4 * units, inputs] and the bias [4 * units, 1] have them.
  void Write(float* kernel, float* bias) const {
    for (int unit = 0; unit < units_; ++unit) {
      for (int row = 0; row <= layer_.inputs; ++row) {
        for (int gate = 0; gate < 4; ++gate) {
          const float sum = Sum(sums_[(unit * rows_ + row) * 4 + gate]) * (gate == 2 ? 1.0f : 0.5f);
          const int gate_row = gate * units_ + unit;
          (row == 0 ? bias[gate_row] : kernel[gate_row * layer_.inputs + row - 1]) = sum;
        }
      }
    }
  }

  static float Sum(Vector lanes) {
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
  }

 private:
  float Weight(int unit, int input, int gate) const {
    return layer_.weights[(unit * (1 + layer_.inputs) + 1 + input) * 4 + gate];
  }
  Vector* Gates(int t) { return &gates_[t * 4 * units_ * kVectors]; }

  const Layer& layer_;
  const int units_, first_, rows_, num_steps_;
  Vectors inputs_;     // [T + 1, rows, kBlock]: ones, the inputs, zeros
  Vectors gates_;      // [T, units, 4, kBlock], after their tanh; then their cotangents
  Vectors cells_;      // [T + 1, units, kBlock]
  Vectors squashed_;   // [T, units, kBlock]: tanh of the new cells
  Vectors of_inputs_;  // cotangents, from input `first` on
  Vectors of_cell_;    // [units, kBlock]
  Vectors sums_;       // [units, rows, 4], of lanes
  std::vector<float> transposed_;  // [inputs / kRows, units, 4, kRows]
};

struct Updates {
  float scale = 1;
  unsigned char bounded = 0;
};

class Backpropagation {
 public:
  Backpropagation(const Stack& stack, const Updates& updates, int num_steps)
      : stack_(stack),
        updates_(updates),
        num_steps_(num_steps),
        of_top_(stack.layers.back().units * kVectors),
        head_sums_(stack.layers.back().units + 1) {
    layers_.reserve(stack.layers.size());
    for (size_t l = 0; l < stack.layers.size(); ++l) {
      layers_.emplace_back(stack.layers[l], l == 0 ? stack.num_features : 0, num_steps);
    }
  }

  // `columns` of n, from where the pointers are on.
  void AddBlock(const float* features, const std::vector<const float*>& states,
                const float* cotangents, int64_t n, int columns) {
    const int num_layers = layers_.size();
    for (int l = 0; l < num_layers; ++l) {
      for (int unit = 0; unit < stack_.layers[l].units; ++unit) {
        LoadBlock(states[2 * l] + unit * n, columns, layers_[l].Hidden(0) + unit * kVectors);
        LoadBlock(states[2 * l + 1] + unit * n, columns, layers_[l].Cell(0) + unit * kVectors);
      }
    }
    for (int t = 0; t < num_steps_; ++t) {
      for (int i = 0; i < stack_.num_features; ++i) {
        LoadBlock(features + (int64_t{t} * stack_.num_features + i) * n, columns,
                  layers_[0].Inputs(t) + i * kVectors);
      }
      for (int l = 0; l < num_layers; ++l) {
        layers_[l].Forward(t, l + 1 < num_layers ? layers_[l + 1].Inputs(t) : nullptr);
      }
    }
    for (LayerSteps& layer : layers_) layer.Begin();
    for (int t = num_steps_ - 1; t >= 0; --t) {
      HeadBackward(layers_.back().Hidden(t + 1), cotangents + t * n, columns);
      for (int l = num_layers - 1; l >= 0; --l) {
        layers_[l].Backward(t, l + 1 < num_layers ? layers_[l + 1].OfInputs() : of_top_.data());
      }
    }
    for (LayerSteps& layer : layers_) layer.AddGradients();
  }

  void Write(const std::vector<float*>& gradients) const {
    for (size_t l = 0; l < layers_.size(); ++l) {
      layers_[l].Write(gradients[2 * l], gradients[2 * l + 1]);
    }
    const int width = stack_.layers.back().units;
    float *head = gradients[2 * layers_.size()], *bias = gradients[2 * layers_.size() + 1];
    for (int i = 0; i < width; ++i) head[i] = LayerSteps::Sum(head_sums_[i]);
    *bias = LayerSteps::Sum(head_sums_[width]);
  }

 private:
  // From the cotangents of a step's updates to those of its last hidden state, in of_top_.
  void HeadBackward(const Vector* top, const float* cotangents, int columns) {
    const int width = stack_.layers.back().units;
    Vector of_outputs[kVectors];
    LoadBlock(cotangents, columns, of_outputs);
    for (int v = 0; v < kVectors; ++v) {
      of_outputs[v] *= updates_.scale;
      if (updates_.bounded) {
        Vector output = Vector{} + *stack_.head_bias;
        for (int i = 0; i < width; ++i) output += stack_.head[i] * top[i * kVectors + v];
        Vector squashed = Divide(Tanh(output));
        of_outputs[v] *= 1.0f - squashed * squashed;
      }
      for (int i = 0; i < width; ++i) {
        of_top_[i * kVectors + v] = stack_.head[i] * of_outputs[v];
        head_sums_[i] += of_outputs[v] * top[i * kVectors + v];
      }
      head_sums_[width] += of_outputs[v];
    }
  }

  const Stack& stack_;
  const Updates updates_;
  const int num_steps_;
  std::vector<LayerSteps> layers_;
  Vectors of_top_, head_sums_;  // the bias' sum is the last
};

// TensorFlow's side.

void Compute(void* kernel, TF_OpKernelContext* context) {
  Status status(TF_NewStatus(), TF_DeleteStatus);
  auto failed = [&] {
    if (TF_GetCode(status.get()) == TF_OK) return false;
    TF_OpKernelContext_Failure(context, status.get());
    return true;
  };
  std::vector<Tensor> inputs;
  for (int i = 0; i < TF_NumInputs(context); ++i) {
    TF_Tensor* tensor = nullptr;
    TF_GetInput(context, i, &tensor, status.get());
    if (failed()) return;
    inputs.emplace_back(tensor, TF_DeleteTensor);
  }
  const int num_weights = TF_NumOutputs(context), num_layers = num_weights / 2 - 1;
  const Tensor &features = inputs[0], &cotangents = inputs.back();
  const Tensor *weights = &inputs[1], *states = &inputs[1 + num_weights];
  std::string mismatch;
  if (num_layers < 1 || inputs.size() != size_t(4 * num_layers + 4)) {
    mismatch = "expected two weights and two states of each layer, and a head";
  } else if (TF_NumDims(features.get()) != 3 || TF_NumDims(cotangents.get()) != 2 ||
             Size(cotangents, 0) != Size(features, 0) || Size(cotangents, 1) != Size(features, 2)) {
    mismatch = "expected features [T, F, N] and cotangents [T, N]";
  } else {
    mismatch = Mismatch(weights, states, num_layers, Size(features, 1), Size(features, 2));
    if (mismatch.empty() && Size(weights[num_weights - 1], 0) != 1) {
      mismatch = "the head must have one output";
    }
  }
  if (!mismatch.empty()) {
    TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, (L2L_TF_OP ": " + mismatch).c_str());
    failed();
    return;
  }
  std::vector<Tensor> outputs;
  std::vector<float*> gradients;
  for (int o = 0; o < num_weights; ++o) {
    const int64_t shape[] = {Size(weights[o], 0), Size(weights[o], 1)};
    TF_Tensor* tensor = TF_AllocateOutput(context, o, TF_FLOAT, shape, 2,
                                          shape[0] * shape[1] * sizeof(float), status.get());
    if (failed()) return;
    outputs.emplace_back(tensor, TF_DeleteTensor);
    gradients.push_back(Data<float>(outputs.back()));
  }
  const int64_t num_steps = Size(features, 0), n = Size(features, 2);
  const Stack stack = ReadStack(weights, num_layers, Size(features, 1));
  Backpropagation backpropagation(stack, *static_cast<Updates*>(kernel), num_steps);
  std::vector<const float*> of_block(2 * num_layers);
  for (int64_t first = 0; first < n; first += kBlock) {
    for (int s = 0; s < 2 * num_layers; ++s) of_block[s] = Data<float>(states[s]) + first;
    const int columns = n - first < kBlock ? n - first : kBlock;
    backpropagation.AddBlock(Data<float>(features) + first, of_block,
                             Data<float>(cotangents) + first, n, columns);
  }
  backpropagation.Write(gradients);
}

void* New(TF_OpKernelConstruction* construction) {
  Status status(TF_NewStatus(), TF_DeleteStatus);
  Updates* updates = new Updates;
  TF_OpKernelConstruction_GetAttrFloat(construction, "output_scale", &updates->scale, status.get());
  TF_OpKernelConstruction_GetAttrBool(construction, "bounded", &updates->bounded, status.get());
  if (TF_GetCode(status.get()) != TF_OK) {
    TF_OpKernelConstruction_Failure(construction, status.get());
  }
  return updates;
}

void Delete(void* kernel) { delete static_cast<Updates*>(kernel); }

const bool registered = Register({
    L2L_TF_OP,
    New,
    Compute,
    Delete,
    {"W: int", "S: int", "output_scale: float", "bounded: bool"},
    {"features: float", "weights: W * float", "states: S * float", "cotangents: float"},
    {"gradients: W * float"},
});

}  // namespace
