// u, v, q, k = split(silu(h)) on the CPU, and the gradient of h from theirs, in one pass each.

#include "rows.h"

using namespace hstuflow;

namespace {

struct Parts {
    const int64_t* widths;
    int64_t count;

    int64_t width() const {
        int64_t total = 0;
        for (int64_t p = 0; p < count; ++p) total += widths[p];
        return total;
    }
};

void forward_rows(Rows h, Parts parts, int64_t first, int64_t last, float* const* outputs) {
    const int64_t width = parts.width();
    std::vector<float> buffer(padded(width));
    for (int64_t row = first; row < last; ++row) {
        fill(buffer, h[row], width);
        for (int64_t c = 0; c < width; c += WIDTH) {
            const Vector x = load(&buffer[c]);
            store(&buffer[c], x * sigmoid(x));
        }
        const float* from = buffer.data();
        for (int64_t p = 0; p < parts.count; from += parts.widths[p++]) {
            copy(from, parts.widths[p], outputs[p] + row * parts.widths[p]);
        }
    }
}

void backward_rows(Rows h, const Rows* grads, Parts parts, int64_t first, int64_t last, float* grad_h) {
    const int64_t width = parts.width();
    std::vector<float> buffer(padded(width)), grad(padded(width));
    for (int64_t row = first; row < last; ++row) {
        fill(buffer, h[row], width);
        float* to = grad.data();
        for (int64_t p = 0; p < parts.count; to += parts.widths[p++]) copy(grads[p][row], parts.widths[p], to);
        for (int64_t c = 0; c < width; c += WIDTH) {
            const Vector x = load(&buffer[c]), s = sigmoid(x);
            store(&grad[c], load(&grad[c]) * s * (1.0f + x * (1.0f - s)));
        }
        copy(grad.data(), width, grad_h + row * width);
    }
}

}  // namespace

extern "C" {

void hstu_silu_split_forward(Rows h, int64_t num_rows, const int64_t* widths, int64_t num_parts, int64_t num_threads,
                             float* const* outputs) {
    share_rows(num_rows, num_threads, [=](int64_t first, int64_t last) {
        forward_rows(h, {widths, num_parts}, first, last, outputs);
    });
}

void hstu_silu_split_backward(Rows h, const Rows* grads, int64_t num_rows, const int64_t* widths, int64_t num_parts,
                              int64_t num_threads, float* grad_h) {
    share_rows(num_rows, num_threads, [=](int64_t first, int64_t last) {
        backward_rows(h, grads, {widths, num_parts}, first, last, grad_h);
    });
}
}
