// The op L2lHierarchicalControl: the control of a Hierarchical without a GRU, on a CPU.
//
// As `control` of hierarchical.py, of the K tensors of a model: a few numbers for each, for which a
// program of XLA's would take longer to start than to run. Of TensorFlow, only its C interface is
// used. All in float32:
//
//   inputs   summaries [2, K], the sums of g^2 and θ^2; the tensors' sizes, fan-in and ranks, [K];
//            brake, first scale and log step, [1, K], powers [3, K], steps [1, K]: the state
//   outputs  controls [4, K], or [5, K] with averaging: step, corrections of the three moments, and
//            the share of the average; the new brake, first scale, powers and steps
//
// Without a limit of growth the first scale is not looked at.

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "hierarchical.h"
#include "tensors.h"

#define L2L_TF_OP "L2lHierarchicalControl" L2L_TF_SUFFIX

namespace {

constexpr float kAlarm = 10.0f, kBrake = -0.3f, kRelease = 0.95f;
constexpr int kInputs = 9, kOutputs = 5;

// The attributes of a node; 0 for what there is not.
struct Options {
  float max_growth, warm_up, decay_after, averaging, averaging_power;
};

struct State {
  const float *brake, *first_scale, *log_step, *powers, *steps;
};

struct NewState {
  float *brake, *first_scale, *powers, *steps;
};

// Of an average that began with 0, the weight of what it has seen in t steps.
float Filled(float decay, float t) { return -std::expm1(std::log(decay) * t); }

void Control(const Options& options, int k, const float* summaries, const float* sizes,
             const float* fan_in, const float* ranks, const State& old, float* controls,
             const NewState& now) {
  bool is_alarmed = false;
  for (int i = 0; i < k; ++i) {
    const float power = summaries[i] / std::fmax(sizes[i], 1.0f);
    for (int p = 0; p < kNumPowers; ++p) {
      const float average = kPowers[p] * old.powers[p * k + i] + (1.0f - kPowers[p]) * power;
      now.powers[p * k + i] = old.steps[i] == 0 ? power : average;
    }
    is_alarmed |= now.powers[i] > kAlarm * now.powers[2 * k + i];
  }
  for (int i = 0; i < k; ++i) {
    const float t = old.steps[i] + 1.0f;
    const float floor = ranks[i] > 1 ? 0.3f / std::sqrt(std::fmax(fan_in[i], 1.0f)) : 0.1f;
    const float mean = summaries[k + i] / std::fmax(sizes[i], 1.0f);
    float scale = std::sqrt(mean + floor * floor);
    if (options.max_growth > 0) {
      now.first_scale[i] = old.steps[i] == 0 ? scale : old.first_scale[i];
      const float most = options.max_growth * now.first_scale[i];
      scale = scale > most ? most : scale;  // NaN stays NaN
    } else {
      now.first_scale[i] = 0;
    }
    now.steps[i] = t;
    now.brake[i] = is_alarmed ? old.brake[i] + kBrake : kRelease * old.brake[i];
    float step = std::exp(old.log_step[i] + now.brake[i]) * scale;
    if (options.warm_up > 0) step *= std::fmin(t / options.warm_up, 1.0f);
    if (options.decay_after > 0) step /= std::sqrt(1.0f + t / options.decay_after);
    const float root = std::sqrt(Filled(kSquare, t));
    controls[i] = step;
    controls[k + i] = root / Filled(kFast, t);
    controls[2 * k + i] = root / Filled(kSlow, t);
    controls[3 * k + i] = root;
    if (options.averaging > 0) {
      controls[4 * k + i] = (options.averaging_power + 1.0f) / (t + options.averaging_power);
    }
  }
}

// TensorFlow's side.

void Compute(void* kernel, TF_OpKernelContext* context) {
  const Options& options = *static_cast<Options*>(kernel);
  Status status(TF_NewStatus(), TF_DeleteStatus);
  auto failed = [&] {
    if (TF_GetCode(status.get()) == TF_OK) return false;
    TF_OpKernelContext_Failure(context, status.get());
    return true;
  };
  std::vector<Tensor> inputs, outputs;
  for (int i = 0; i < kInputs; ++i) {
    TF_Tensor* tensor = nullptr;
    TF_GetInput(context, i, &tensor, status.get());
    if (failed()) return;
    inputs.emplace_back(tensor, TF_DeleteTensor);
  }
  const int64_t k = TF_TensorElementCount(inputs[1].get());
  const int64_t rows[kInputs] = {2, 1, 1, 1, 1, 1, 1, kNumPowers, 1};
  for (int i = 0; i < kInputs; ++i) {
    if (TF_TensorElementCount(inputs[i].get()) != rows[i] * k) {
      const std::string message = L2L_TF_OP ": input " + std::to_string(i) + " is not of K tensors";
      TF_SetStatus(status.get(), TF_INVALID_ARGUMENT, message.c_str());
      failed();
      return;
    }
  }
  const int64_t num_controls = options.averaging > 0 ? 5 : 4;
  const int64_t out[kOutputs] = {num_controls, 1, 1, kNumPowers, 1};
  for (int o = 0; o < kOutputs; ++o) {
    const int64_t shape[] = {out[o], k};
    TF_Tensor* tensor = TF_AllocateOutput(context, o, TF_FLOAT, shape, 2, out[o] * k * sizeof(float),
                                          status.get());
    if (failed()) return;
    outputs.emplace_back(tensor, TF_DeleteTensor);
  }
  auto in = [&](int i) { return Data<const float>(inputs[i]); };
  auto to = [&](int o) { return Data<float>(outputs[o]); };
  Control(options, k, in(0), in(1), in(2), in(3), {in(4), in(5), in(6), in(7), in(8)}, to(0),
          {to(1), to(2), to(3), to(4)});
}

void* New(TF_OpKernelConstruction* construction) {
  Status status(TF_NewStatus(), TF_DeleteStatus);
  Options* options = new Options;
  const std::pair<const char*, float*> attributes[] = {
      {"max_growth", &options->max_growth},
      {"warm_up", &options->warm_up},
      {"decay_after", &options->decay_after},
      {"averaging", &options->averaging},
      {"averaging_power", &options->averaging_power},
  };
  for (const auto& [name, value] : attributes) {
    TF_OpKernelConstruction_GetAttrFloat(construction, name, value, status.get());
    if (TF_GetCode(status.get()) != TF_OK) {
      TF_OpKernelConstruction_Failure(construction, status.get());
      break;
    }
  }
  return options;
}

void Delete(void* kernel) { delete static_cast<Options*>(kernel); }

const bool registered = Register({
    L2L_TF_OP,
    New,
    Compute,
    Delete,
    {"max_growth: float", "warm_up: float", "decay_after: float", "averaging: float",
     "averaging_power: float"},
    {"summaries: float", "sizes: float", "fan_in: float", "ranks: float", "brake: float",
     "first_scale: float", "log_step: float", "powers: float", "steps: float"},
    {"controls: float", "new_brake: float", "new_first_scale: float", "new_powers: float",
     "new_steps: float"},
});

}  // namespace
