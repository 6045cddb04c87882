// What the attention operator on the CPU is called with, how it cuts a sequence into tiles, and what each tile may see.
#pragma once

#include <cstdint>
#include <limits>

#include "matrix.h"

namespace hstuflow {

// (L, H, D): rows and heads any number of floats apart, the D values of one head side by side.
struct HeadRows {
    const float* data;
    int64_t row_stride, head_stride;

    const float* at(int64_t row, int64_t head) const { return data + row * row_stride + head * head_stride; }
};

// The arguments of kernels.hstu_attention; kernels/hstu_cpu.py has the same fields in the same order. Pointers to what
// is not there are null.
struct Problem {
    HeadRows q, k, v;
    const int64_t* offsets;          // (B+1,)
    const int64_t* num_targets;      // (B,)
    const float* position_weight;    // (2N-1,)
    const float* time_weight;        // (NUM_BUCKETS,)
    const int64_t* timestamps;       // (L,)
    const int64_t* next_timestamps;  // (L,)
    const int64_t* thresholds;       // (NUM_BUCKETS - 1,), see kernels/time_buckets.py
    int64_t num_rows, num_sequences, num_heads, dim_qk, dim_v, max_len, num_context, window, num_threads;
    float alpha;

    bool has_bias() const { return position_weight || time_weight; }

    // Whether all rows that the offsets name are there, every sequence holds its context and its targets, and what is
    // packed of it is counted by an int.
    bool fits() const {
        const int64_t most = std::min(max_len, std::numeric_limits<int>::max() / (std::max(dim_qk, dim_v) + 64) - 64);
        for (int64_t b = 0; b < num_sequences; ++b) {
            if (offsets[b] < 0 || offsets[b + 1] < offsets[b] || offsets[b + 1] > num_rows) return false;
            const int64_t length = offsets[b + 1] - offsets[b], targets = num_targets ? num_targets[b] : 0;
            if (length > most) return false;
            if (length && (targets < 0 || targets > length || num_context > length - targets)) return false;
        }
        return offsets[0] == 0 && offsets[num_sequences] == num_rows;
    }
};

constexpr int NUM_BUCKETS = 129;
constexpr int TILE = PANEL;  // rows and columns of a tile at most

// Memory handed out piece by piece, each on a cache line of its own. Without memory it only counts what is needed.
class Arena {
public:
    explicit Arena(float* memory) : memory_(memory) {}

    template <class T>
    T* take(int64_t count) {
        const int64_t first = used_;
        used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 16;
        return memory_ ? reinterpret_cast<T*>(memory_ + first) : nullptr;
    }

    int64_t used() const { return used_; }  // in floats

private:
    float* memory_;
    int64_t used_ = 0;
};

// One sequence of the batch.
struct Sequence {
    int64_t start;    // its first row in the batch
    int length;       // n
    int history_end;  // n - t: where its targets begin
    int last_id;      // the id of every target

    Sequence(const Problem& problem, int64_t index)
        : start(problem.offsets[index]), length(int(problem.offsets[index + 1] - start)) {
        history_end = length - (problem.num_targets ? int(problem.num_targets[index]) : 0);
        last_id = history_end - (problem.num_context ? int(problem.num_context) - 1 : 0);
    }
};

// Rows and columns of one sequence whose scores are computed together.
struct Tile {
    int row, rows, column, columns;
    bool masked;  // whether some of its scores are hidden

    int width() const { return round_up(columns, WIDTH); }
};

// Who sees whom, as in `attention_mask` of kernels/reference.py: row i sees column j when i = j or id_i > id_j.
class Mask {
public:
    Mask(Arena& arena, int longest) : ids_(arena.take<int32_t>(longest + TILE)) {}

    void begin(const Problem& problem, const Sequence& sequence) {
        length_ = sequence.length;
        last_id_ = sequence.last_id;
        window_ = problem.window ? int(std::min<int64_t>(problem.window, NONE)) : NONE;
        has_context_ = problem.num_context > 0;
        const int shift = has_context_ ? int(problem.num_context) - 1 : 0;
        for (int i = 0; i < length_; ++i) ids_[i] = std::min(std::max(i - shift, 0), last_id_);
        std::fill(ids_ + length_, ids_ + length_ + TILE, NONE);  // seen by nobody
    }

    // Calls visit(tile) for the tiles that these rows can see something of.
    template <class Visit>
    void for_each_tile(int row, int rows, Visit visit) const {
        const bool context_rows = has_context_ && ids_[row] == 0;
        const int end = context_rows ? length_ : row + rows;
        for (int column = 0; column < end; column += TILE) {
            Tile tile{row, rows, column, std::min(TILE, end - column), true};
            const bool diagonal = column + TILE > row;
            if (!diagonal && sees_nothing(tile)) continue;
            if (!diagonal || context_rows) {
                tile.masked = !sees_everything(tile);
                visit(tile);
                continue;
            }
            for (int i = row; i < row + rows; i += STRIP) {  // each strip ends at the diagonal
                const int strip = std::min(STRIP, row + rows - i);
                visit(Tile{i, strip, column, i + strip - column, true});
            }
        }
    }

    // Which of the columns from `column` on a row sees: all bits of a lane are set or none.
    IntVector visible(int row, int column) const {
        IntVector ids, columns;
        std::memcpy(&ids, ids_ + column, sizeof ids);
        for (int lane = 0; lane < WIDTH; ++lane) columns[lane] = column + lane;
        const IntVector distance = ids_[row] - ids;
        IntVector seen = ((distance > 0) & (distance <= window_)) | (columns == row);
        if (has_context_ && ids_[row] == 0) seen |= ids < last_id_;
        return seen;
    }

private:
    static constexpr int NONE = std::numeric_limits<int>::max();
    static constexpr int STRIP = 16;

    // For tiles off the diagonal; ids rise with the rows.
    bool sees_nothing(const Tile& tile) const {
        const int first_row = ids_[tile.row], last_row = ids_[tile.row + tile.rows - 1];
        const int first_column = ids_[tile.column], last_column = ids_[tile.column + tile.columns - 1];
        if (has_context_ && first_row == 0 && first_column < last_id_) return false;
        return last_row <= first_column || first_row - last_column > window_;
    }

    bool sees_everything(const Tile& tile) const {
        const int first_row = ids_[tile.row], last_row = ids_[tile.row + tile.rows - 1];
        const int first_column = ids_[tile.column], last_column = ids_[tile.column + tile.columns - 1];
        return first_row > last_column && last_row - first_column <= window_;
    }

    int32_t* ids_;
    int length_ = 0, last_id_ = 0, window_ = 0;
    bool has_context_ = false;
};

}  // namespace hstuflow
