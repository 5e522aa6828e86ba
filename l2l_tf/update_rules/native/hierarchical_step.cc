// The ops L2lHierarchicalSummarize and L2lHierarchicalUpdate: Hierarchical's step, on a CPU.
//
// As `summarize` and `update` of hierarchical.py, for K tensors whose state is one vector a leaf:
// each number is read once, and written once, a vector of coordinates goes through all of the net in
// registers. What the control does between the two is left to XLA. Of TensorFlow, only its C
// interface is used.
//
//   L2lHierarchicalSummarize
//     inputs   K gradients, K parameters, in float32, of any shape; the moments fast, slow and
//              square, or square alone, each [P], in float32 or bfloat16: the tensors' coordinates
//              one after another, those of each filled up to a multiple of `block`
//     outputs  summaries [S, K]; whether all gradients are finite
//   L2lHierarchicalUpdate
//     inputs   gradients and parameters; controls [C, K]; the net's weights, first [U, 7], second
//              [U, U] and its bias [U, 1], last [2, U] and its bias [2, 1], or none; the factor on
//              updates and, for each tensor, the share of a parameter that is taken off, [K]; the
//              state; of a rule that averages its iterates, by how much the last is ahead [P]
//     outputs  K new parameters; the new state
//
// Work is cut into chunks of a tensor, for several threads. Sums are those of chunks, added up in
// order: they do not depend on the threads.

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "hierarchical.h"
#include "tensors.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr float kLargest = 1e15f;  // of gradients
constexpr float kMostGain = 2.0f, kAtRest = 100.0f;
constexpr int kFeatures = 7;
constexpr int kSums = 12, kSumsWithoutNet = 10, kSumsWithoutMomenta = 2;
constexpr int kFirstBias = 5;     // of the controls' rows
constexpr int64_t kChunk = 4096;  // coordinates
// What goes through the net at once: some vectors, beside each other for what one would wait for,
// and for each of them the sums of some units.
constexpr int kVectors = 2, kTile = 4;
constexpr int kBlock = kLanes * kVectors;

// float, const as T is.
template <typename T>
using Float = std::conditional_t<std::is_const_v<T>, const float, float>;

template <typename T>
struct State {
  T *fast, *slow;  // null without momenta
  T* square;
  Float<T>* lead;  // null of a rule that does not average
  State At(int64_t i) const {
    return {fast ? fast + i : fast, slow ? slow + i : slow, square + i, lead ? lead + i : lead};
  }
};

// Coordinates of one tensor, side by side.
struct Chunk {
  int tensor;
  int64_t start, place, size;  // in the tensor, in the state
};

inline Vector Blend(float decay, Vector old, Vector now) {
  return decay * old + (1.0f - decay) * now;
}

// What is below the smallest normal float is 0, as for TensorFlow's threads.
inline auto IsPositive(Vector square) { return square >= Vector{} + FLT_MIN; }

// 1 / sqrt(x), and 0 for 0.
inline Vector InverseRootOrZero(Vector x) { return Where(IsPositive(x), InverseRoot(x)); }

// log sqrt(x), and 0 for 0.
inline Vector LogRoot(Vector x) { return Where(IsPositive(x), 0.5f * Log(x)); }

inline float SumOf(Vector x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
}

// What is read of some coordinates, and what is written.
template <typename T>
struct Inputs {
  const float *gradient, *parameter;
  State<const T> state;
  Inputs At(int64_t i) const { return {gradient + i, parameter + i, state.At(i)}; }
};

template <typename T>
struct Outputs {
  float* parameter;
  State<T> state;
  Outputs At(int64_t i) const { return {parameter + i, state.At(i)}; }
};

// The coordinates that do not fill a block, in one of their own, filled up with zeros.
template <typename T>
struct Padded {
  float values[5][kBlock] = {};
  T states[6][kBlock] = {};

  Padded(const Inputs<T>& from, int64_t size) {
    std::memcpy(values[0], from.gradient, size * sizeof(float));
    std::memcpy(values[1], from.parameter, size * sizeof(float));
    if (from.state.fast) std::memcpy(states[0], from.state.fast, size * sizeof(T));
    if (from.state.slow) std::memcpy(states[1], from.state.slow, size * sizeof(T));
    std::memcpy(states[2], from.state.square, size * sizeof(T));
    if (from.state.lead) std::memcpy(values[3], from.state.lead, size * sizeof(float));
  }
  Inputs<T> inputs() const {
    return {values[0], values[1], {states[0], states[1], states[2], values[3]}};
  }
  Outputs<T> outputs() { return {values[2], {states[3], states[4], states[5], values[4]}}; }
  void Empty(const Outputs<T>& to, int64_t size) const {
    std::memcpy(to.parameter, values[2], size * sizeof(float));
    if (to.state.fast) std::memcpy(to.state.fast, states[3], size * sizeof(T));
    if (to.state.slow) std::memcpy(to.state.slow, states[4], size * sizeof(T));
    std::memcpy(to.state.square, states[5], size * sizeof(T));
    if (to.state.lead) std::memcpy(to.state.lead, values[4], size * sizeof(float));
  }
};

// A chunk's part of its tensor's sums, and 0, or NaN where a gradient is not finite.
template <typename T, int kNumSums>
void Summarize(int64_t size, const Inputs<T>& inputs, float* sums, float* not_finite) {
  Vector sum[kSums] = {}, finite = {};
  auto add = [&](const Inputs<T>& inputs) {
    for (int at = 0; at < kBlock; at += kLanes) {
      const Inputs<T> own = inputs.At(at);
      Vector g = Load(own.gradient), theta = Load(own.parameter);
      finite += g * 0.0f;
      g = Clip(g, kLargest);
      sum[0] += g * g;
      sum[1] += theta * theta;
      if constexpr (kNumSums == kSumsWithoutMomenta) continue;
      Vector fast = Load(own.state.fast), slow = Load(own.state.slow);
      Vector square = Load(own.state.square);
      Vector direction = fast * InverseRootOrZero(square);
      sum[2] += g * fast;
      sum[3] += fast * fast;
      sum[4] += g * slow;
      sum[5] += slow * slow;
      sum[6] += fast * slow;
      sum[7] += g * direction;
      sum[8] += direction * direction;
      sum[9] += square;
      if constexpr (kNumSums == kSums) {
        Vector next = Blend(kSquare, square, g * g);
        sum[10] += LogRoot(next);
        sum[11] += Where(IsPositive(next), Vector{} + 1.0f);
      }
    }
  };
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) add(inputs.At(i));
  if (i < size) add(Padded<T>(inputs.At(i), size - i).inputs());
  for (int s = 0; s < kNumSums; ++s) sums[s] = SumOf(sum[s]);
  *not_finite = SumOf(finite);
}

// The net's weights, in the order in which they are read: to all units from one input after another.
template <int kUnits>
struct Net {
  float first[kFeatures][kUnits], second[kUnits][kUnits], second_bias[kUnits];
  float last[kUnits][2], last_bias[2];

  explicit Net(const std::vector<Tensor>& inputs, int at) {
    Transpose(Data<float>(inputs[at]), &first[0][0], kUnits, kFeatures);
    Transpose(Data<float>(inputs[at + 1]), &second[0][0], kUnits, kUnits);
    Transpose(Data<float>(inputs[at + 2]), second_bias, kUnits, 1);
    Transpose(Data<float>(inputs[at + 3]), &last[0][0], 2, kUnits);
    Transpose(Data<float>(inputs[at + 4]), last_bias, 2, 1);
  }

  static void Transpose(const float* from, float* to, int rows, int columns) {
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        to[column * rows + row] = from[row * columns + column];
      }
    }
  }
};

template <>
struct Net<0> {
  explicit Net(const std::vector<Tensor>&, int) {}
};

// Of one tensor, what its coordinates are told.
template <int kUnits>
struct Controls {
  float step, of_fast, of_slow, of_gradient, mean_log, biases[kUnits + 1];
  float share;        // of the average, that the iterate gets
  float rate, decay;  // of the optimizer
};

using Block = Vector[kVectors];

template <int kIn, int kOut>
inline void Layer(const Block* inputs, const float (*weights)[kOut], const float* biases,
                  Block* outputs) {
  constexpr int kSize = kOut < kTile ? kOut : kTile;
#pragma GCC unroll 16
  for (int first = 0; first < kOut; first += kSize) {
    Block sums[kSize];
#pragma GCC unroll 16
    for (int o = 0; o < kSize; ++o) {
      for (int v = 0; v < kVectors; ++v) sums[o][v] = Vector{} + biases[first + o];
    }
#pragma GCC unroll 16
    for (int i = 0; i < kIn; ++i) {
#pragma GCC unroll 16
      for (int o = 0; o < kSize; ++o) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[o][v] += weights[i][first + o] * inputs[i][v];
      }
    }
#pragma GCC unroll 16
    for (int o = 0; o < kSize; ++o) {
      for (int v = 0; v < kVectors; ++v) outputs[first + o][v] = sums[o][v];
    }
  }
}

template <int kUnits>
inline void Rectify(Block* units) {
  for (int unit = 0; unit < kUnits; ++unit) {
    for (Vector& value : units[unit]) value = Max(0.0f, value);
  }
}

// What the net sees of some coordinates: `fast`, `slow` and `gradient` relative to the root of
// `square`.
inline void Features(Vector fast, Vector slow, Vector gradient, Vector square, float mean_log, int v,
                     Block* features) {
  features[0][v] = Clip(fast, 3.0f);
  features[1][v] = 3.0f * Clip(slow, 3.0f);
  features[2][v] = Clip(gradient, 3.0f);
  features[3][v] = Clip(3.0f * fast * slow, 2.0f);
  features[4][v] = Min(3.0f, 3.0f * Magnitude(slow)) - 0.5f;
  features[5][v] = 0.5f * Clip(LogRoot(square) - mean_log, 4.0f);
  features[6][v] = Min(2.0f, Magnitude(fast)) - 0.3f;
}

template <typename T, int kUnits, bool kHasMomenta>
void Update(int64_t size, const Inputs<T>& inputs, const Outputs<T>& outputs,
            const Net<kUnits>& net, const Controls<kUnits>& controls, float max_direction,
            float averaging) {
  auto step = [&](const Inputs<T>& inputs, const Outputs<T>& outputs) {
    Block features[kFeatures], moves, directions;
    for (int v = 0; v < kVectors; ++v) {
      const Inputs<T> own = inputs.At(v * kLanes);
      const State<T> next = outputs.At(v * kLanes).state;
      Vector g = Clip(Load(own.gradient), kLargest);
      Vector square = Blend(kSquare, Load(own.state.square), g * g), fast{}, slow{};
      Store(square, next.square);
      Vector size = InverseRootOrZero(square);
      if constexpr (kHasMomenta) {
        fast = Blend(kFast, Load(own.state.fast), g);
        slow = Blend(kSlow, Load(own.state.slow), g);
        Store(fast, next.fast);
        Store(slow, next.slow);
        fast *= size * controls.of_fast;
      }
      g *= size * controls.of_gradient;
      directions[v] = averaging > 0 ? Clip(g, max_direction) : Clip(fast, 3.0f);
      if constexpr (kUnits > 0) {
        slow *= size * controls.of_slow;
        moves[v] = Min(1.0f, kAtRest * (Magnitude(fast) + Magnitude(g)));
        Features(fast, slow, g, square, controls.mean_log, v, features);
      }
    }
    if constexpr (kUnits > 0) {
      Block first[kUnits], second[kUnits], last[2];
      Layer<kFeatures, kUnits>(features, net.first, controls.biases, first);
      Rectify<kUnits>(first);
      Layer<kUnits, kUnits>(first, net.second, net.second_bias, second);
      Rectify<kUnits>(second);
      Layer<kUnits, 2>(second, net.last, net.last_bias, last);
      for (int v = 0; v < kVectors; ++v) {
        Vector gain = Exp(Clip(last[1][v], kMostGain));
        directions[v] = Clip((directions[v] + moves[v] * last[0][v]) * gain, max_direction);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const Inputs<T> own = inputs.At(v * kLanes);
      Vector theta = Load(own.parameter), update = -controls.step * directions[v];
      if (averaging > 0) {
        Vector lead = Load(own.state.lead), move = update;
        const float share = controls.share;
        update = (1.0f - averaging + averaging * share) * move + share * lead;
        Store((1.0f - share) * (lead + averaging * move), outputs.At(v * kLanes).state.lead);
      }
      Vector change = controls.decay * theta - controls.rate * update;
      Store(theta - change, outputs.At(v * kLanes).parameter);
    }
  };
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) step(inputs.At(i), outputs.At(i));
  if (i == size) return;
  Padded<T> rest(inputs.At(i), size - i);
  step(rest.inputs(), rest.outputs());
  rest.Empty(outputs.At(i), size - i);
}

// TensorFlow's side.

// The attributes of a node, and what both ops have in common.
struct Kernel {
  int64_t block, num_threads, num_tensors, num_moments, num_weights = 0;
  unsigned char has_net = 0;
  float max_direction = 0, averaging = 0;

  // Of the update alone is known whether there is one for averaging.
  int num_leaves() const { return num_moments + (averaging > 0); }
};

struct Call {
  TF_OpKernelContext* context;
  const Kernel& kernel;
  Status status{TF_NewStatus(), TF_DeleteStatus};
  std::vector<Tensor> inputs, outputs;
  std::vector<Chunk> chunks;
  int64_t state_size = 0;

  Call(const Kernel* kernel, TF_OpKernelContext* context) : context(context), kernel(*kernel) {}

  bool Failed() {
    if (TF_GetCode(status.get()) == TF_OK) return false;
    TF_OpKernelContext_Failure(context, status.get());
    return true;
  }

  bool Fail(const std::string& what) {
    TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, ("L2lHierarchical: " + what).c_str());
    return !Failed();
  }

  int64_t Elements(int input) const { return TF_TensorElementCount(inputs[input].get()); }

  int64_t FilledUp(int tensor) const {
    return (Elements(tensor) + kernel.block - 1) / kernel.block * kernel.block;
  }

  // Whether the inputs are there and fit each other, and the chunks are known.
  bool Begin() {
    const int num_inputs = TF_NumInputs(context), k = kernel.num_tensors;
    for (int i = 0; i < num_inputs; ++i) {
      TF_Tensor* tensor = nullptr;
      TF_GetInput(context, i, &tensor, status.get());
      if (Failed()) return false;
      inputs.emplace_back(tensor, TF_DeleteTensor);
    }
    for (int tensor = 0; tensor < k; ++tensor) {
      const int64_t size = Elements(tensor);
      if (Elements(k + tensor) != size) return Fail("a gradient does not fit its parameter");
      for (int64_t start = 0; start < size; start += kChunk) {
        const int64_t rest = size - start;
        chunks.push_back({tensor, start, state_size + start, rest < kChunk ? rest : kChunk});
      }
      state_size += FilledUp(tensor);
    }
    for (int leaf = 1; leaf <= kernel.num_leaves(); ++leaf) {
      if (Elements(num_inputs - leaf) != state_size) return Fail("the state does not fit");
    }
    return true;
  }

  TF_DataType StateType() const {
    return TF_TensorType(inputs[inputs.size() - kernel.num_leaves()].get());
  }

  template <typename T>
  Inputs<T> InputsOf(const Chunk& chunk) const {
    return {Data<const float>(inputs[chunk.tensor]) + chunk.start,
            Data<const float>(inputs[kernel.num_tensors + chunk.tensor]) + chunk.start,
            StateOf<const T>(inputs).At(chunk.place)};
  }

  template <typename T>
  Outputs<T> OutputsOf(const Chunk& chunk) const {
    return {Data<float>(outputs[chunk.tensor]) + chunk.start, StateOf<T>(outputs).At(chunk.place)};
  }

  // The state is the last of the inputs, and of the outputs.
  template <typename T>
  State<T> StateOf(const std::vector<Tensor>& tensors) const {
    const Tensor* leaves = &tensors[tensors.size() - kernel.num_leaves()];
    const int square = kernel.num_moments - 1;
    return {square ? Data<T>(leaves[0]) : nullptr, square ? Data<T>(leaves[1]) : nullptr,
            Data<T>(leaves[square]),
            kernel.averaging > 0 ? Data<Float<T>>(leaves[square + 1]) : nullptr};
  }

  int ThreadsToUse() const { return state_size < 4 * kChunk ? 1 : kernel.num_threads; }
};

template <typename T, int kNumSums>
void SummarizeAll(Call* call) {
  const int k = call->kernel.num_tensors;
  std::vector<float> sums(call->chunks.size() * kNumSums), not_finite(call->chunks.size());
  Threads::ForEach(call->chunks.size(), call->ThreadsToUse(), [&](int64_t i) {
    const Chunk& chunk = call->chunks[i];
    Summarize<T, kNumSums>(chunk.size, call->InputsOf<T>(chunk), &sums[i * kNumSums],
                           &not_finite[i]);
  });
  std::vector<double> of_tensors(kNumSums * k);
  bool is_finite = true;
  for (size_t i = 0; i < call->chunks.size(); ++i) {
    const int tensor = call->chunks[i].tensor;
    for (int s = 0; s < kNumSums; ++s) of_tensors[s * k + tensor] += sums[i * kNumSums + s];
    is_finite &= not_finite[i] == 0;
  }
  float* result = Data<float>(call->outputs[0]);
  for (size_t i = 0; i < of_tensors.size(); ++i) result[i] = of_tensors[i];
  *Data<bool>(call->outputs[1]) = is_finite;
}

template <int kNumSums>
void SummarizeAll(Call* call) {
  if (call->StateType() == TF_BFLOAT16) {
    SummarizeAll<Bfloat16, kNumSums>(call);
  } else {
    SummarizeAll<float, kNumSums>(call);
  }
}

void ComputeSummaries(void* kernel, TF_OpKernelContext* context) {
  Call call(static_cast<Kernel*>(kernel), context);
  if (!call.Begin()) return;
  const int64_t k = call.kernel.num_tensors;
  const int64_t num_sums = call.kernel.num_moments == 1 ? kSumsWithoutMomenta
                           : call.kernel.has_net        ? kSums
                                                        : kSumsWithoutNet;
  const int64_t shape[] = {num_sums, k};
  TF_Tensor* tensor = TF_AllocateOutput(context, 0, TF_FLOAT, shape, 2,
                                        num_sums * k * sizeof(float), call.status.get());
  if (call.Failed()) return;
  call.outputs.emplace_back(tensor, TF_DeleteTensor);
  tensor = TF_AllocateOutput(context, 1, TF_BOOL, nullptr, 0, sizeof(bool), call.status.get());
  if (call.Failed()) return;
  call.outputs.emplace_back(tensor, TF_DeleteTensor);
  switch (num_sums) {
    case kSumsWithoutMomenta: return SummarizeAll<kSumsWithoutMomenta>(&call);
    case kSumsWithoutNet: return SummarizeAll<kSumsWithoutNet>(&call);
    case kSums: return SummarizeAll<kSums>(&call);
  }
}

template <typename T, int kUnits, bool kHasMomenta>
void UpdateAll(Call* call) {
  const int k = call->kernel.num_tensors;
  const Net<kUnits> net(call->inputs, 2 * k + 1);
  const float* controls = Data<float>(call->inputs[2 * k]);
  const int optimizers = 2 * k + 1 + call->kernel.num_weights;
  const float rate = *Data<float>(call->inputs[optimizers]);
  const float* decays = Data<float>(call->inputs[optimizers + 1]);
  std::vector<Controls<kUnits>> of_tensors(k);
  for (int tensor = 0; tensor < k; ++tensor) {
    auto row = [&](int r) { return controls[r * k + tensor]; };
    Controls<kUnits>& own = of_tensors[tensor];
    own.step = row(0), own.of_fast = row(1), own.of_slow = row(2), own.of_gradient = row(3);
    if (kUnits) own.mean_log = row(4);
    for (int unit = 0; unit < kUnits; ++unit) own.biases[unit] = row(kFirstBias + unit);
    if (call->kernel.averaging > 0) own.share = row(kUnits ? kFirstBias + kUnits : 4);
    own.rate = rate, own.decay = decays[tensor];
  }
  Threads::ForEach(call->chunks.size(), call->ThreadsToUse(), [&](int64_t i) {
    const Chunk& chunk = call->chunks[i];
    Update<T, kUnits, kHasMomenta>(chunk.size, call->InputsOf<T>(chunk),
                                   call->OutputsOf<T>(chunk), net, of_tensors[chunk.tensor],
                                   call->kernel.max_direction, call->kernel.averaging);
  });
  // What fills tensors up stays 0.
  int64_t end = 0;
  for (int tensor = 0; tensor < k; ++tensor) {
    const int64_t start = end + call->Elements(tensor);
    end += call->FilledUp(tensor);
    const int num_moments = call->kernel.num_moments;
    for (int leaf = 0; leaf < num_moments; ++leaf) {
      std::memset(Data<T>(call->outputs[k + leaf]) + start, 0, (end - start) * sizeof(T));
    }
    if (call->kernel.averaging > 0) {
      float* lead = Data<float>(call->outputs[k + num_moments]);
      std::memset(lead + start, 0, (end - start) * sizeof(float));
    }
  }
}

template <int kUnits, bool kHasMomenta = true>
void UpdateAll(Call* call) {
  if (call->StateType() == TF_BFLOAT16) {
    UpdateAll<Bfloat16, kUnits, kHasMomenta>(call);
  } else {
    UpdateAll<float, kUnits, kHasMomenta>(call);
  }
}

void ComputeUpdate(void* kernel, TF_OpKernelContext* context) {
  Call call(static_cast<Kernel*>(kernel), context);
  if (!call.Begin()) return;
  const int k = call.kernel.num_tensors, num_inputs = call.inputs.size();
  const int net = 2 * k + 1, optimizers = net + call.kernel.num_weights;
  const int units = call.kernel.num_weights ? call.Elements(net + 2) : 0;
  const int64_t rows = (units ? kFirstBias + units : 4) + (call.kernel.averaging > 0);
  if (call.Elements(2 * k) != rows * k) return (void)call.Fail("the controls do not fit");
  if (call.kernel.num_weights != (units ? 5 : 0)) return (void)call.Fail("a net has 5 weights");
  if (units) {
    const int64_t expected[] = {kFeatures * units, units * units, units, 2 * units, 2};
    for (int w = 0; w < 5; ++w) {
      if (call.Elements(net + w) != expected[w]) return (void)call.Fail("the net does not fit");
    }
  }
  if (call.Elements(optimizers) != 1 || call.Elements(optimizers + 1) != k) {
    return (void)call.Fail("the learning rate or the decays do not fit");
  }
  const int num_leaves = call.kernel.num_leaves();
  const bool has_momenta = call.kernel.num_moments > 1;
  if (!has_momenta && (units || call.kernel.averaging <= 0)) {
    return (void)call.Fail("without momenta there is no net, and iterates are averaged");
  }
  for (int o = 0; o < k + num_leaves; ++o) {
    // The gradient is not needed any more: what is new of the parameter may take its place.
    const int input = o < k ? o : num_inputs - num_leaves + o - k;
    const TF_Tensor* like = call.inputs[input].get();
    std::vector<int64_t> shape;
    for (int axis = 0; axis < TF_NumDims(like); ++axis) shape.push_back(TF_Dim(like, axis));
    int forwarded = -1;
    TF_Tensor* tensor =
        o < k ? TF_ForwardInputOrAllocateOutput(context, &input, 1, o, shape.data(), shape.size(),
                                                &forwarded, call.status.get())
              : TF_AllocateOutput(context, o, TF_TensorType(like), shape.data(), shape.size(),
                                  TF_TensorByteSize(like), call.status.get());
    if (call.Failed()) return;
    call.outputs.emplace_back(tensor, TF_DeleteTensor);
  }
  switch (units) {
    case 0: return has_momenta ? UpdateAll<0>(&call) : UpdateAll<0, false>(&call);
    case 4: return UpdateAll<4>(&call);
    case 8: return UpdateAll<8>(&call);
    default: call.Fail("a net has 4 or 8 units");
  }
}

template <bool kIsUpdate>
void* New(TF_OpKernelConstruction* construction) {
  Status status(TF_NewStatus(), TF_DeleteStatus);
  Kernel* kernel = new Kernel;
  TF_OpKernelConstruction_GetAttrInt64(construction, "block", &kernel->block, status.get());
  TF_OpKernelConstruction_GetAttrInt64(construction, "threads", &kernel->num_threads, status.get());
  TF_OpKernelConstruction_GetAttrInt64(construction, "K", &kernel->num_tensors, status.get());
  TF_OpKernelConstruction_GetAttrInt64(construction, "M", &kernel->num_moments, status.get());
  if (kIsUpdate) {
    TF_OpKernelConstruction_GetAttrInt64(construction, "W", &kernel->num_weights, status.get());
    TF_OpKernelConstruction_GetAttrFloat(construction, "max_direction", &kernel->max_direction,
                                         status.get());
    TF_OpKernelConstruction_GetAttrFloat(construction, "averaging", &kernel->averaging,
                                         status.get());
  } else {
    TF_OpKernelConstruction_GetAttrBool(construction, "has_net", &kernel->has_net, status.get());
  }
  if (TF_GetCode(status.get()) == TF_OK && kernel->num_moments != 1 && kernel->num_moments != 3) {
    TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, "L2lHierarchical: there are 1 or 3 moments");
  }
  if (TF_GetCode(status.get()) != TF_OK) {
    TF_OpKernelConstruction_Failure(construction, status.get());
  }
  return kernel;
}

void Delete(void* kernel) { delete static_cast<Kernel*>(kernel); }

// One of both ops: what they have in common goes first.
bool RegisterStep(const char* name, decltype(&New<false>) create,
                  void (*compute)(void*, TF_OpKernelContext*), std::vector<std::string> attributes,
                  std::vector<std::string> inputs, std::vector<std::string> outputs) {
  const std::vector<std::string> of_both = {"K: int >= 1", "M: int >= 1", "T: {float, bfloat16}",
                                            "block: int >= 1", "threads: int >= 1"};
  attributes.insert(attributes.begin(), of_both.begin(), of_both.end());
  inputs.insert(inputs.begin(), {"gradients: K * float", "parameters: K * float"});
  return Register({name, create, compute, Delete, attributes, inputs, outputs});
}

const bool registered =
    RegisterStep("L2lHierarchicalSummarize" L2L_TF_SUFFIX, New<false>, ComputeSummaries,
                 {"has_net: bool"}, {"moments: M * T"}, {"summaries: float", "is_finite: bool"}) &&
    RegisterStep("L2lHierarchicalUpdate" L2L_TF_SUFFIX, New<true>, ComputeUpdate,
                 {"W: int >= 0", "max_direction: float", "averaging: float", "A: int >= 0"},
                 {"controls: float", "weights: W * float", "rate: float", "decays: float",
                  "moments: M * T", "lead: A * float"},
                 {"new_parameters: K * float", "new_moments: M * T", "new_lead: A * float"});

}  // namespace
