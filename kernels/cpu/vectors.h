// Vectors of floats as wide as the machine's registers, in the vector extensions that gcc and clang share.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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

inline Vector broadcast(float x) { return x - Vector{}; }  // x + 0 would have to turn -0 into 0

// The first `count` values, where there are fewer than WIDTH, and zeros behind them. Compilers make a masked load of
// this loop; of one that ends at `count` they make a call of memcpy, for two or three values.
inline Vector load_first(const float* from, int count) {
    if (count >= WIDTH) return load(from);
    float lanes[WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane) lanes[lane] = lane < count ? from[lane] : 0.0f;
    return load(lanes);
}

// Lanes of two vectors, counted on from one to the other.
template <int... LANES>
inline Vector choose_lanes(Vector x, Vector y, std::integer_sequence<int, LANES...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, y, LANES...);
#else
    return __builtin_shuffle(x, y, IntVector{LANES...});
#endif
}

template <int STEP, int... LANES>
inline Vector rotate(Vector x, std::integer_sequence<int, LANES...>) {
    return choose_lanes(x, x, std::integer_sequence<int, (LANES + STEP) % WIDTH...>());
}

// In halves: one lane after the other, each addition waits for the one before it.
template <int HALF = WIDTH / 2>
inline float sum(Vector x) {
    if constexpr (HALF == 0)
        return x[0];
    else
        return sum<HALF / 2>(x + rotate<HALF>(x, std::make_integer_sequence<int, WIDTH>()));
}

// One step of a transposition: exchanges the upper lanes of x with the lower lanes of y, in blocks of STEP.
template <int STEP, int... LANES>
inline void exchange(Vector& x, Vector& y, std::integer_sequence<int, LANES...>) {
    using Lower = std::integer_sequence<int, (LANES & STEP ? LANES - STEP + WIDTH : LANES)...>;
    using Upper = std::integer_sequence<int, (LANES & STEP ? LANES + WIDTH : LANES + STEP)...>;
    const Vector lower = choose_lanes(x, y, Lower());
    y = choose_lanes(x, y, Upper());
    x = lower;
}

// Transposes a square of vectors.
template <int STEP = 1>
inline void transpose(Vector* rows) {
    if constexpr (STEP < WIDTH) {
        for (int i = 0; i < WIDTH; ++i)
            if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<int, WIDTH>());
        transpose<2 * STEP>(rows);
    }
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

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace hstuflow
