// Stacked LSTM layers and a linear head, as the kernels of a step and of the backward pass have them.

#ifndef L2L_TF_LSTM_H_
#define L2L_TF_LSTM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tensors.h"
#include "vectors.h"

namespace {

struct Fraction {
  Vector over, under;  // under: 1 to 200
};

// tanh as x P(x^2) / Q(x^2), of least largest relative error on [-7.9, 7.9]: 1.3e-7. Beyond, tanh
// is 1 to 3e-7.
inline Fraction Tanh(Vector x) {
  x = Max(-7.9f, Min(7.9f, x));
  Vector z = x * x;
  Vector p = z * 1.1531825e-05f + 2.96047186e-03f;
  p = p * z + 0.129344161f;
  p = p * z + 0.999999869f;
  Vector q = z * 2.49254371e-07f + 2.40011858e-04f;
  q = q * z + 2.38540769e-02f;
  q = q * z + 0.462676428f;
  q = q * z + 1.0f;
  return {x * p, q};
}

// A layer's weights, unit by unit: for the bias and then for each input, the four gates side by side
// (input, forget, candidate, output). Gates with a sigmoid are halved:
// sigmoid(x) = (1 + tanh(x / 2)) / 2.
struct Layer {
  int units, inputs;  // inputs: with the units' own
  std::vector<float> weights;

  Layer(int units, int inputs, const float* kernel, const float* bias)
      : units(units), inputs(inputs), weights(4 * units * (inputs + 1)) {
    float* next = weights.data();
    for (int unit = 0; unit < units; ++unit) {
      for (int column = -1; column < inputs; ++column) {
        for (int gate = 0; gate < 4; ++gate) {
          int row = gate * units + unit;
          float weight = column < 0 ? bias[row] : kernel[row * inputs + column];
          *next++ = gate == 2 ? weight : 0.5f * weight;
        }
      }
    }
  }
};

struct Stack {
  int num_features, num_outputs;
  std::vector<Layer> layers;
  const float *head, *head_bias;

  int Widest() const {  // rows of the largest input of a layer, or of the head
    int widest = 0;
    for (const Layer& layer : layers) widest = layer.inputs > widest ? layer.inputs : widest;
    return widest;
  }
};

// From kernel and bias of each layer, head and its bias.
inline Stack ReadStack(const Tensor* weights, int num_layers, int num_features) {
  Stack stack;
  stack.num_features = num_features;
  for (int l = 0; l < num_layers; ++l) {
    const Tensor &kernel = weights[2 * l], &bias = weights[2 * l + 1];
    stack.layers.emplace_back(Size(kernel, 0) / 4, Size(kernel, 1), Data<float>(kernel),
                              Data<float>(bias));
  }
  const Tensor &head = weights[2 * num_layers], &head_bias = weights[2 * num_layers + 1];
  stack.num_outputs = Size(head, 0);
  stack.head = Data<float>(head);
  stack.head_bias = Data<float>(head_bias);
  return stack;
}

// What is wrong with the shapes of weights and of the layers' states, given the features' [rows, n];
// or an empty string.
inline std::string Mismatch(const Tensor* weights, const Tensor* states, int num_layers, int64_t rows,
                            int64_t n) {
  for (int i = 0; i < 2 * num_layers + 2; ++i) {
    const bool is_state = i < 2 * num_layers;
    if (TF_NumDims(weights[i].get()) != 2 || (is_state && TF_NumDims(states[i].get()) != 2)) {
      return "every weight and state must have two axes";
    }
  }
  int64_t width = rows;
  for (int l = 0; l < num_layers; ++l) {
    const int64_t units = Size(states[2 * l], 0);
    const Tensor &kernel = weights[2 * l], &bias = weights[2 * l + 1];
    if (Size(kernel, 0) != 4 * units || Size(kernel, 1) != width + units ||
        Size(bias, 0) != 4 * units || Size(bias, 1) != 1) {
      return "kernel and bias of layer " + std::to_string(l) + " do not fit its inputs and state";
    }
    if (units == 0 || Size(states[2 * l + 1], 0) != units || Size(states[2 * l], 1) != n ||
        Size(states[2 * l + 1], 1) != n) {
      return "the state of layer " + std::to_string(l) + " does not fit the features";
    }
    width = units;
  }
  const Tensor &head = weights[2 * num_layers], &head_bias = weights[2 * num_layers + 1];
  if (Size(head, 1) != width || Size(head_bias, 0) != Size(head, 0) || Size(head_bias, 1) != 1) {
    return "the head does not fit the last layer";
  }
  return "";
}

}  // namespace

#endif
