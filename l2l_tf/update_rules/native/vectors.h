// Vectors of a processor's width, as values: the compiler's vector types, and what it does not make
// of them by itself. The compiler's -march chooses the branch: AVX-512, AVX, or what every processor
// has.

#ifndef L2L_TF_VECTORS_H_
#define L2L_TF_VECTORS_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr __mmask16 kAllLanes = 0xffff;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kCacheLine = 64;

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
struct Bfloat16 {
  uint16_t bits;
};

inline Vector Load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline Vector Load(const Bfloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return (Vector)(__builtin_convertvector(halves, Integers) << 16);
}

inline void Store(Vector value, float* to) { std::memcpy(to, &value, sizeof(value)); }

// Rounds to nearest, ties to even. NaN stays NaN.
inline void Store(Vector value, Bfloat16* to) {
  Integers bits = (Integers)value;
  Integers rounded = bits + 0x7fff + ((bits >> 16) & 1);
  rounded = value == value ? rounded : (bits | 0x400000);
  Halves halves = __builtin_convertvector((rounded >> 16) & 0xffff, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

// Past the caches: `to` is aligned.
#if defined(__AVX512F__)
inline void Stream(Vector value, float* to) { _mm512_stream_ps(to, (__m512)value); }

inline void Stream(Vector value, Bfloat16* to) {
  alignas(2 * kLanes) Bfloat16 halves[kLanes];
  Store(value, halves);
  _mm256_stream_si256((__m256i*)to, *(const __m256i*)halves);
}
#else
template <typename T>
void Stream(Vector value, T* to) {
  Store(value, to);
}
#endif

inline Vector Reciprocal(Vector x) {
#if defined(__AVX512F__)
  Vector estimate = (Vector)_mm512_maskz_rcp14_ps(kAllLanes, (__m512)x);
  return estimate * (2.0f - x * estimate);  // one step of Newton's: 28 bits
#else
  return 1.0f / x;
#endif
}

// The smaller and the larger of two; NaN where x is NaN. One instruction, which the compiler does not
// make of a comparison. With a mask of all lanes: what has none is given an undefined vector in GCC's
// header, of which GCC warns.
inline Vector Min(float bound, Vector x) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_min_ps(kAllLanes, (__m512)(Vector{} + bound), (__m512)x);
#elif defined(__AVX__)
  return (Vector)_mm256_min_ps((__m256)(Vector{} + bound), (__m256)x);
#else
  return x > bound ? Vector{} + bound : x;
#endif
}

inline Vector Max(float bound, Vector x) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_max_ps(kAllLanes, (__m512)(Vector{} + bound), (__m512)x);
#elif defined(__AVX__)
  return (Vector)_mm256_max_ps((__m256)(Vector{} + bound), (__m256)x);
#else
  return x < bound ? Vector{} + bound : x;
#endif
}

inline Vector Clip(Vector x, float bound) { return Max(-bound, Min(bound, x)); }

inline Vector Magnitude(Vector x) { return (Vector)((Integers)x & 0x7fffffff); }

// Bits of `x` where the comparison `where` holds, 0 elsewhere.
template <typename Mask>
inline Vector Where(Mask where, Vector x) {
  return (Vector)((Integers)where & (Integers)x);
}

// 1 / sqrt(x), for normal floats above 0: an estimate, of 11 bits at least, and a step of Newton's.
inline Vector InverseRoot(Vector x) {
#if defined(__AVX512F__)
  Vector estimate = (Vector)_mm512_maskz_rsqrt14_ps(kAllLanes, (__m512)x);
#elif defined(__AVX__)
  Vector estimate = (Vector)_mm256_rsqrt_ps((__m256)x);
#elif defined(__x86_64__)
  Vector estimate = (Vector)_mm_rsqrt_ps((__m128)x);
#else
  Vector root;
  for (int lane = 0; lane < kLanes; ++lane) root[lane] = std::sqrt(x[lane]);
  return 1.0f / root;
#endif
#if defined(__x86_64__)
  return estimate * (1.5f - (0.5f * x * estimate) * estimate);
#endif
}

// log(x), for normal floats above 0: that of a power of 2, and of what is left, 2/3 to 4/3, by a
// polynomial of least largest relative error: 3e-8.
inline Vector Log(Vector x) {
  typedef int32_t Signed __attribute__((vector_size(4 * kLanes)));
  Signed exponent = ((Signed)x - 0x3f2aaaab) & (int32_t)0xff800000;
  Vector f = (Vector)((Signed)x - exponent) - 1.0f;
  Vector p = f * 0.143742176f - 0.153727219f;
  p = p * f + 0.139209006f;
  p = p * f - 0.16419354f;
  p = p * f + 0.200160607f;
  p = p * f - 0.250075986f;
  p = p * f + 0.333331063f;
  p = p * f - 0.499999402f;
  Vector power = __builtin_convertvector(exponent, Vector) * 0x1p-23f;
  return power * 0.693147182f + (f * f * p + f);
}

// exp(x), for |x| up to 80: a power of 2, and a polynomial of least largest relative error: 2e-9.
inline Vector Exp(Vector x) {
  Vector rounded = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: what is added ends fractions
  Vector power = rounded - 12582912.0f;
  Vector r = x - power * 0.693147182f;
  Vector p = r * 0.00138368458f + 0.0083748158f;
  p = p * r + 0.0416682256f;
  p = p * r + 0.166664202f;
  p = p * r + 0.499999921f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (Vector)((Integers)p + ((Integers)rounded << 23));
}

}  // namespace

#endif
