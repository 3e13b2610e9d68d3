// A product in whichever layout its matrices have: by the tiles of tile.h, or by the dot products
// of dots.h.
#pragma once

#include "cpu/dots.h"
#include "cpu/tile.h"

namespace fastrnn::cpu {
namespace {

// S is the storage type of matrices that are not packed.
template <typename S, typename C>
void run_product(const Product<C>& p, int64_t rows, const Share& share) {
  const int part = share.part, parts = share.parts;
  if (rows == 0) return;
  switch (p.layout) {
    case Layout::kPacked:
      return run_panels<C, Packed>(p, rows, part, parts);
    case Layout::kPairs:
      if constexpr (kHasPairs<S>) run_panels<C, Pairs>(p, rows, part, parts);
      return;
    case Layout::kNatural:
      return run_panels<C, S>(p, rows, part, parts);
    case Layout::kTransposed:
      return run_dots<C, S>(p, rows, part, parts);
  }
}

}  // namespace
}  // namespace fastrnn::cpu
