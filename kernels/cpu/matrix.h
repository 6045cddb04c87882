// Products of small single-precision matrices, and the packing of their right operands.
#pragma once

#include <algorithm>
#include <cstddef>

#include "vectors.h"

namespace hstuflow {

// The left operand: any strides, so that a transpose is two numbers swapped.
struct Left {
    const float* data;
    std::ptrdiff_t row_stride, column_stride;
};

// The right operand and the result: contiguous rows of whole vectors, `stride` floats apart.
struct Right {
    const float* data;
    std::ptrdiff_t stride;
};

struct Result {
    float* data;
    std::ptrdiff_t stride;
};

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// result (ROWS x VECTORS * WIDTH) = or += left (ROWS x depth) right (depth x VECTORS * WIDTH), in registers.
template <int ROWS, int VECTORS>
inline void multiply_block(int depth, Left left, Right right, Result result, bool accumulate) {
    Vector sums[ROWS][VECTORS];
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v)
            sums[i][v] = accumulate ? load(result.data + i * result.stride + v * WIDTH) : Vector{};
    for (int k = 0; k < depth; ++k) {
        Vector row[VECTORS];
        for (int v = 0; v < VECTORS; ++v) row[v] = load(right.data + k * right.stride + v * WIDTH);
        for (int i = 0; i < ROWS; ++i) {
            const Vector factor = broadcast(left.data[i * left.row_stride + k * left.column_stride]);
            for (int v = 0; v < VECTORS; ++v) sums[i][v] += factor * row[v];
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) store(result.data + i * result.stride + v * WIDTH, sums[i][v]);
}

// As multiply_block, for 1 to ROWS rows.
template <int ROWS, int VECTORS>
void multiply_rows(int rows, int depth, Left left, Right right, Result result, bool accumulate) {
    if (rows == ROWS)
        multiply_block<ROWS, VECTORS>(depth, left, right, result, accumulate);
    else if constexpr (ROWS > 1)
        multiply_rows<ROWS - 1, VECTORS>(rows, depth, left, right, result, accumulate);
}

// As multiply_block, for any number of rows, cut as evenly as they go: 16 are 6 + 5 + 5.
template <int VECTORS>
void multiply_columns(int rows, int depth, Left left, Right right, Result result, bool accumulate) {
    constexpr int REGISTERS = WIDTH == 16 ? 24 : 12;  // for sums; AVX-512 has 32 in all, others 16
    constexpr int MOST = std::min(12, REGISTERS / VECTORS);
    for (int blocks = (rows + MOST - 1) / MOST; blocks > 0; --blocks) {
        const int taken = (rows + blocks - 1) / blocks;
        multiply_rows<MOST, VECTORS>(taken, depth, left, right, result, accumulate);
        left.data += taken * left.row_stride;
        result.data += taken * result.stride;
        rows -= taken;
    }
}

// result (rows x columns) = or += left (rows x depth) right (depth x columns); columns a multiple of WIDTH.
inline void multiply(int rows, int columns, int depth, Left left, Right right, Result result, bool accumulate) {
    constexpr int MOST = WIDTH == 16 ? 4 : 2;
    for (int vectors = columns / WIDTH; vectors > 0; vectors -= MOST) {
        if (MOST == 4 && vectors >= 4)
            multiply_columns<MOST>(rows, depth, left, right, result, accumulate);
        else if (MOST == 4 && vectors == 3)
            multiply_columns<std::min(3, MOST)>(rows, depth, left, right, result, accumulate);
        else if (vectors >= 2)
            multiply_columns<2>(rows, depth, left, right, result, accumulate);
        else
            multiply_columns<1>(rows, depth, left, right, result, accumulate);
        right.data += MOST * WIDTH;
        result.data += MOST * WIDTH;
    }
}

// Rows as a right operand: to (rows x round_up(columns, WIDTH)), `from` times scale, zeros behind the last column.
inline void pack_rows(int rows, int columns, const float* from, std::ptrdiff_t from_stride, float scale, float* to) {
    const int padded = round_up(columns, WIDTH);
    for (int i = 0; i < rows; ++i, from += from_stride, to += padded)
        for (int j = 0; j < columns; j += WIDTH) store(to + j, load_first(from + j, columns - j) * scale);
}

// Rows, transposed, as right operands of PANEL columns each: panel p, at p * PANEL * columns, holds rows p * PANEL to
// (p + 1) * PANEL as its columns; zeros behind the last row. Panels, because rows of 8,192 columns would all fall into
// the same few sets of the first-level cache.
constexpr int PANEL = 64;

inline void pack_panels(int rows, int columns, const float* from, std::ptrdiff_t from_stride, float scale, float* to) {
    for (int first = 0; first < rows; first += WIDTH) {
        float* panel = to + first / PANEL * PANEL * columns + first % PANEL;
        for (int j = 0; j < columns; j += WIDTH) {
            Vector block[WIDTH];
            for (int i = 0; i < WIDTH; ++i) {
                const bool is_there = first + i < rows;
                block[i] = is_there ? load_first(from + (first + i) * from_stride + j, columns - j) * scale : Vector{};
            }
            transpose(block);
            for (int i = 0; i < std::min(WIDTH, columns - j); ++i) store(panel + (j + i) * PANEL, block[i]);
        }
    }
}

}  // namespace hstuflow
