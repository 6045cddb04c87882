// Dropout on the CPU: y = mask * x. It is its own gradient.

#include "dropout_mask.h"
#include "rows.h"

using namespace hstuflow;

extern "C" void hstu_dropout(Rows x, int64_t num_rows, int64_t width, int64_t threshold, int64_t seed,
                             int64_t num_threads, float* y) {
    const DropoutMask mask_of(width, threshold, static_cast<uint32_t>(seed));
    share_rows(num_rows, num_threads, [=](int64_t first, int64_t last) {
        std::vector<float> mask(padded(width) + 2 * WIDTH), buffer(padded(width));
        for (int64_t row = first; row < last; ++row) {
            mask_of.fill(row, mask.data());
            fill(buffer, x[row], width);
            for (int64_t c = 0; c < width; c += WIDTH) store(&buffer[c], load(&buffer[c]) * load(&mask[c]));
            copy(buffer.data(), width, y + row * width);
        }
    });
}
