// A row of a coefficient table in memory; table.py gives the meaning, a test compares the order.
#pragma once

namespace fastdiff {

// clang-format off
enum RowField : int {
  ROW_T, ROW_CI, ROW_PX, ROW_PM, ROW_CLIP,
  ROW_CX, ROW_CB, ROW_CM, ROW_C0, ROW_C1, ROW_C2, ROW_C3, ROW_S, ROW_LOG_MIN, ROW_LOG_MAX,
  ROW_BX, ROW_BB, ROW_BM, ROW_B0, ROW_B1, ROW_B2, ROW_B3,
  ROW_EVALUATE, ROW_SAVE_BASE, ROW_PUSH, ROW_SLOT, ROW_DEPTH,
};
// clang-format on

constexpr int ROW_WIDTH = 32;

}  // namespace fastdiff
