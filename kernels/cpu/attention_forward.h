// The forward pass of attention over one sequence, tile by tile, and what the backward pass shares with it.
#pragma once

#include "attention_bias.h"
#include "attention_problem.h"
#include "matrix.h"
#include "vectors.h"

namespace hstuflow {

struct Range {
    int64_t first, end;
};

inline Left left(const HeadRows& rows, int64_t row, int64_t head) { return {rows.at(row, head), rows.row_stride, 1}; }

inline Left tile_of(const float* scores) { return {scores, TILE, 1}; }

inline Left transposed(Left x) { return {x.data, x.column_stride, x.row_stride}; }

// Copies rows of a packed result to contiguous (L, H, D).
inline void unpack(const float* from, int rows, int dim, int64_t start, int64_t head, int64_t num_heads, float* to) {
    to += (start * num_heads + head) * dim;
    for (int i = 0; i < rows; ++i, from += round_up(dim, WIDTH), to += num_heads * dim) std::copy(from, from + dim, to);
}

// Vectors of a tile, one after another: visit(offset in the tile, which of its scores are visible).
template <class Visit>
inline void for_each_vector(const Tile& tile, const Mask& mask, Visit visit) {
    for (int i = 0; i < tile.rows; ++i)
        for (int j = 0; j < tile.width(); j += WIDTH) {
            if (tile.masked)
                visit(i * TILE + j, mask.visible(tile.row + i, tile.column + j));
            else
                visit(i * TILE + j, IntVector{} - 1);
        }
}

class Forward {
public:
    Forward(Arena& arena, const Problem& problem, const TimeBuckets& buckets, int longest)
        : problem_(problem),
          dim_(int(problem.dim_qk)),
          dim_v_(int(problem.dim_v)),
          width_v_(round_up(dim_v_, WIDTH)),
          size_k_(round_up(longest, PANEL) * dim_),
          size_v_(longest * width_v_),
          mask_(arena, longest),
          bias_(arena, problem, buckets, longest),
          panels_k_(arena.take<float>(problem.num_heads * size_k_)),
          rows_v_(arena.take<float>(problem.num_heads * size_v_)),
          output_(arena.take<float>(problem.num_heads * TILE * width_v_)),
          scores_(arena.take<float>(TILE * TILE)) {}

    // Writes the sequence's rows from `first_row` on; of those before, keys and values are read and nothing else.
    void run(const Sequence& sequence, Range heads, float* output, int first_row = 0) {
        mask_.begin(problem_, sequence);
        bias_.begin(sequence);
        const int length = sequence.length;
        for (int64_t h = heads.first; h < heads.end; ++h) {
            const Left k = left(problem_.k, sequence.start, h), v = left(problem_.v, sequence.start, h);
            pack_panels(length, dim_, k.data, k.row_stride, problem_.alpha, panels_k_ + h * size_k_);
            pack_rows(length, dim_v_, v.data, v.row_stride, 1.0f / problem_.max_len, rows_v_ + h * size_v_);
        }
        for (int row = first_row, rows; row < length; row += rows) {
            rows = std::min(TILE - row % TILE, length - row);  // tiles begin at multiples, whatever the first row is
            std::fill(output_ + heads.first * TILE * width_v_, output_ + heads.end * TILE * width_v_, 0.0f);
            mask_.for_each_tile(row, rows, [&](const Tile& tile) {
                const float* bias = problem_.has_bias() ? bias_.fill(tile) : nullptr;
                for (int64_t h = heads.first; h < heads.end; ++h) add_tile(sequence, tile, h, row, bias);
            });
            for (int64_t h = heads.first; h < heads.end; ++h) {
                const float* packed = output_ + h * TILE * width_v_;
                unpack(packed, rows, dim_v_, sequence.start + row, h, problem_.num_heads, output);
            }
        }
    }

private:
    void add_tile(const Sequence& sequence, const Tile& tile, int64_t h, int tile_row, const float* bias) {
        const Left q = left(problem_.q, sequence.start + tile.row, h);
        const Right k{panels_k_ + h * size_k_ + tile.column * dim_, PANEL};
        multiply(tile.rows, tile.width(), dim_, q, k, {scores_, TILE}, false);
        for_each_vector(tile, mask_, [&](int at, IntVector visible) {
            Vector s = load(scores_ + at);
            if (bias) s += load(bias + at);
            store(scores_ + at, visible ? s * sigmoid(s) : Vector{});
        });
        const Right v{rows_v_ + h * size_v_ + tile.column * width_v_, width_v_};
        float* o = output_ + (h * TILE + tile.row - tile_row) * width_v_;
        multiply(tile.rows, width_v_, tile.columns, tile_of(scores_), v, {o, width_v_}, true);
    }

    const Problem& problem_;
    const int dim_, dim_v_, width_v_;
    const int64_t size_k_, size_v_;
    Mask mask_;
    Bias bias_;
    float *panels_k_, *rows_v_, *output_, *scores_;
};

}  // namespace hstuflow
