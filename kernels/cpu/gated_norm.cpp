// The gated norm on the CPU, row by row: y = mask * u * layer_norm(o), and its gradients as in gated_norm_torch.py.

#include "dropout_mask.h"
#include "rows.h"

using namespace hstuflow;

namespace {

struct Problem {
    Rows o, u;
    int64_t num_rows, width;
    float eps;
    int64_t threshold, seed, num_threads;
};

// One row at a time, in one thread's buffers.
class GatedNorm {
  public:
    explicit GatedNorm(const Problem& problem)
        : problem_(problem),
          width_(problem.width),
          mask_of_(problem.width, problem.threshold, static_cast<uint32_t>(problem.seed)),
          normed_(padded(width_)),
          gate_(padded(width_)),
          grad_(padded(width_)),
          mask_(padded(width_) + 2 * WIDTH, 1.0f) {}

    void forward(int64_t row, float* y) {
        prepare(row);
        for (int64_t c = 0; c < width_; c += WIDTH) {
            store(&gate_[c], load(&normed_[c]) * load(&gate_[c]) * load(&mask_[c]));
        }
        copy(gate_.data(), width_, y + row * width_);
    }

    void backward(int64_t row, Rows grad, float* grad_o, float* grad_u) {
        const float rstd = prepare(row);
        fill(grad_, grad[row], width_);
        Vector total{}, total_along{};
        for (int64_t c = 0; c < width_; c += WIDTH) {
            const Vector normed = load(&normed_[c]), grad_y = load(&grad_[c]) * load(&mask_[c]);
            const Vector grad_normed = grad_y * load(&gate_[c]);
            total += grad_normed;
            total_along += grad_normed * normed;
            store(&gate_[c], grad_y * normed);
            store(&grad_[c], grad_normed);
        }
        copy(gate_.data(), width_, grad_u + row * width_);
        const float mean = sum(total) / width_, along = sum(total_along) / width_;
        for (int64_t c = 0; c < width_; c += WIDTH) {
            store(&grad_[c], (load(&grad_[c]) - mean - load(&normed_[c]) * along) * rstd);
        }
        copy(grad_.data(), width_, grad_o + row * width_);
    }

  private:
    // Fills normed_, gate_ and mask_ for a row; returns its 1 / sqrt(variance + eps).
    float prepare(int64_t row) {
        fill(gate_, problem_.u[row], width_);
        if (problem_.threshold > 0) mask_of_.fill(row, mask_.data());
        fill(normed_, problem_.o[row], width_);
        return normalize(normed_.data(), width_, problem_.eps, normed_.data());
    }

    const Problem& problem_;
    int64_t width_;
    DropoutMask mask_of_;
    std::vector<float> normed_, gate_, grad_, mask_;
};

// Calls visit(GatedNorm&, row) for every row.
template <typename Visit>
void for_each_row(const Problem& problem, Visit visit) {
    share_rows(problem.num_rows, problem.num_threads, [&](int64_t first, int64_t last) {
        GatedNorm norm(problem);
        for (int64_t row = first; row < last; ++row) visit(norm, row);
    });
}

}  // namespace

extern "C" {

void hstu_gated_norm_forward(const Problem* problem, float* y) {
    for_each_row(*problem, [=](GatedNorm& norm, int64_t row) { norm.forward(row, y); });
}

void hstu_gated_norm_backward(const Problem* problem, Rows grad, float* grad_o, float* grad_u) {
    for_each_row(*problem, [=](GatedNorm& norm, int64_t row) { norm.backward(row, grad, grad_o, grad_u); });
}
}
