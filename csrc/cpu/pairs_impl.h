// The plan's instructions over pairs of bfloat16 numbers (factors_impl.h), and the way in to them: convolutions and
// attention.
#pragma once

#include <cstdint>

#include "amx_impl.h"
#include "attention_impl.h"
#include "convolution_impl.h"
#include "factors_impl.h"
#include "images_impl.h"
#include "instructions.h"
#include "plan_layout.h"
#include "vec_impl.h"

namespace fastdiff::FD_VARIANT {

// Keys of one head of one sample to w.shared, as in attention_impl.h, in pairs along the channels, [panels of keys, d /
// 2, PANEL], and behind them v in pairs along the keys, [(keys + 1) / 2, d].
static void attention_pairs(const Work& w, int64_t unit) {
  const Instruction& i = w.i;
  const int64_t keys = i.height * i.width, d = attention_width(i) / i.heads, words = Pairs::words(d);
  const Keys k_of = keys_at(w, unit / i.heads, unit % i.heads);
  float* to = w.shared + unit * attention_shared(i);
  for (int64_t panel = 0; panel < panels_of(keys); ++panel)
    for (int64_t j = 0; j < keys_of(keys, panel); ++j) {
      const int64_t key = panel * PANEL + j;
      for (int64_t k = 0; k < d; k += 16) {
        const u16x16 rounded = rounded_to_bfloat(key < keys ? k_of.load(key, k) : (f32x16){});
        word pairs[8];
        __builtin_memcpy(pairs, &rounded, sizeof(pairs));
        for (int64_t n = 0; n < 8; ++n) ((word*)to)[(panel * words + k / 2 + n) * PANEL + j] = pairs[n];
      }
    }
  const float* v = at(w, i.source, unit / i.heads, keys * i.channels) + attention_values(i) + unit % i.heads * d;
  to += panels_of(keys) * PANEL * words;
  for (int64_t key = 0; key < keys; key += 2, to += d)
    for (int64_t c = 0; c < d; c += 16) {
      const f32x16 second = key + 1 < keys ? load16(v + (key + 1) * i.channels + c) : (f32x16){};
      const u32x16 low = __builtin_convertvector(rounded_to_bfloat(load16(v + key * i.channels + c)), u32x16);
      *(u32x16u*)(to + c) = low | __builtin_convertvector(rounded_to_bfloat(second), u32x16) << 16;
    }
}

// scratch: [thread_scratch(...)].
void run_pairs_unit(const Work& w, int64_t threads, int64_t unit, float* scratch) {
#if defined(FD_AMX)
  const TilesInUse in_use;
#endif
  if (w.i.op == PLAN_CONV) return convolution<Pairs>(w, threads, unit, scratch);
  w.phase == 0 ? attention_pairs(w, unit) : attention_queries<Pairs>(w, unit, scratch);
}

}  // namespace fastdiff::FD_VARIANT
