// Which elements dropout keeps: dropout_mask.py in C++; it says how, and the two agree bit by bit.
#pragma once

#include "vectors.h"

namespace hstuflow {

typedef uint32_t UintVector __attribute__((vector_size(WIDTH * sizeof(uint32_t))));

template <typename Word>  // uint32_t or UintVector
inline Word mix(Word x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// The mask of one call: all rows of a tensor with `width` columns.
class DropoutMask {
  public:
    DropoutMask(int64_t width, int64_t threshold, uint32_t seed)
        : half_((width + 1) / 2), threshold_(static_cast<uint32_t>(threshold)), seed_hash_(mix(seed)) {
        const float scale = 65536.0f / (65536.0f - static_cast<float>(threshold));
        std::memcpy(&scale_bits_, &scale, sizeof scale);
        for (int lane = 0; lane < WIDTH; ++lane) steps_[lane] = WEYL * static_cast<uint32_t>(lane);
    }

    // Writes 0 or the scale for each column; up to 2 * WIDTH more floats are written after them.
    void fill(int64_t row, float* mask) const {
        const uint32_t row_hash = mix(seed_hash_ + static_cast<uint32_t>(row));
        // From the last to the first: what a low half writes past its end, the first high half then overwrites.
        for (int64_t c = (half_ - 1) / WIDTH * WIDTH; c >= 0; c -= WIDTH) {
            const UintVector words = mix(steps_ + (row_hash + WEYL * static_cast<uint32_t>(c)));
            store(mask + c, kept(words & 0xffffu));
            store(mask + half_ + c, kept(words >> 16));
        }
    }

  private:
    static constexpr uint32_t WEYL = 0x9e3779b9u;

    Vector kept(UintVector bits) const {
        const IntVector scaled = (bits >= threshold_) & scale_bits_;
        Vector mask;
        std::memcpy(&mask, &scaled, sizeof mask);
        return mask;
    }

    int64_t half_;
    uint32_t threshold_, seed_hash_;
    int32_t scale_bits_;
    UintVector steps_;
};

}  // namespace hstuflow
