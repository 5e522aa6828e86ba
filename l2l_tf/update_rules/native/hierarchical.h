// What the kernels of Hierarchical have in common: constants of hierarchical.py.

#ifndef L2L_TF_HIERARCHICAL_H_
#define L2L_TF_HIERARCHICAL_H_

namespace {

constexpr float kFast = 0.9f, kSlow = 0.99f, kSquare = 0.99f;  // decays of the moments
constexpr float kPowers[] = {0.8f, 0.95f, 0.99f};  // of the averages of a tensor's gradient power
constexpr int kNumPowers = 3;

}  // namespace

#endif
