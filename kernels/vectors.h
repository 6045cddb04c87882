// Vectors of floats as wide as the machine's registers, in the vector extensions that gcc and clang share.
#pragma once

#include <cstdint>
#include <cstring>

namespace hstuflow {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t IntVector __attribute__((vector_size(WIDTH * sizeof(int32_t))));

inline Vector load(const float* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

inline Vector broadcast(float x) { return Vector{} + x; }

inline float sum(Vector x) {
    float total = 0;
    for (int lane = 0; lane < WIDTH; ++lane) total += x[lane];
    return total;
}

// e^x within 2 units in the last place for |x| <= 87; clamped there, so that it neither overflows nor vanishes.
// 2^n e^r with n = round(x / ln 2) and a Taylor polynomial of degree 7 for |r| <= ln(2) / 2 (error 5e-9).
inline Vector exp(Vector x) {
    const Vector highest = broadcast(87.0f), lowest = broadcast(-87.0f);
    x = x > highest ? highest : x;
    x = x < lowest ? lowest : x;
    const Vector magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const Vector shifted = x * 1.44269504f + magic;
    const Vector n = shifted - magic;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    Vector p = broadcast(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    IntVector bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + (127 - 0x4B400000)) << 23;  // 2^n
    Vector power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

}  // namespace hstuflow
