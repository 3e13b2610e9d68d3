// How a block computes igates of its own rows, before its walk.
#pragma once

#include "cuda/any_rows.cuh"

namespace fastrnn::cuda {

// Tile plan: the group holds w_ih as it will hold w_hh, in two parts if there are more features
//   than units. x of as many steps as fit takes the place of states, so that a step is a product of
//   the group's own; all of the block's shared memory is free for them.
// Sync plan: a barrier after x has come, and one after the products that read it. The last also
//   stands between the writes of igates and their reads in the walk, by other threads of the block
//   too: ordinary ones, or of cp.async, which reads through the same proxy (bulk copies do not), so
//   that a barrier before it is enough.
// Limits: a group of one block; at most most_features(); the launcher checks. Why: the product as a
// launch of its own takes longer than these few steps: computes_igates() has the estimate.
template <typename Group>
FASTRNN_DEVICE void compute_igates(const ForwardRecurrence& r, const ForwardDirection& d) {
  using S = typename Group::Storage;
  constexpr int kElements = Group::kElements, kHidden = Group::kHidden,
                kBatch = kElements < 8 ? 8 / kElements : 1;
  static_assert(Group::kBarriersAt == 2 * Group::kStateBytes, "all weights are in registers");
  unsigned char* const all = shared_memory<unsigned char>();  // [steps][parts][kStateBytes]
  const int units = static_cast<int>(r.hidden_size), features = static_cast<int>(d.input_size),
            parts = features > kHidden ? 2 : 1, bytes = parts * Group::kStateBytes,
            steps = Group::kSharedBytes / bytes;
  const auto* const w_ih = static_cast<const S*>(d.w_ih);
  Group group, more;
  group.load(w_ih, units, features, features, 1);
  if (parts > 1) more.load(w_ih + kHidden, units, features - kHidden, features, 1);
  const Owned<Group> own(r.rows, group, r.hidden_size, false);
  const auto at = [&](const Sequence& x, int e, int t) {
    return static_cast<S*>(x.data) + place(r.rows, x, t, own.b[Group::slot(e)]) + group.unit(e);
  };
  // Of kBatch steps, all asked for before the first is waited for.
  const auto bring = [&](int begin, int end, int part, unsigned char* to) {
    uint32_t x[kBatch][kElements];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const bool there = begin + n < end && own.at(Group::slot(e), begin + n) &&
                           part * kHidden + group.unit(e) < features;
        const S* from = there ? at(d.input, e, begin + n) + part * kHidden : w_ih;
        x[n][e] = load_bits(from, there);
      }
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      if (begin + n >= end) break;
#pragma unroll
      for (int e = 0; e < kElements; ++e) group.put(to + n * bytes, e, value_of<S>(x[n][e]));
    }
  };

  for (int first = 0; first < own.longest; first += steps) {
    const int end = first + steps < own.longest ? first + steps : own.longest;
    for (int t = first; t < end; t += kBatch) {
      for (int part = 0; part < parts; ++part)
        bring(t, end, part, all + (t - first) * bytes + part * Group::kStateBytes);
    }
    block_sync();  // x is there
#pragma unroll 2
    for (int t = first; t < end; ++t) {
      const unsigned char* x = all + (t - first) * bytes;
      float c[kElements], rest[kElements] = {};
      group.product(x, c, [] {});
      if (parts > 1) more.product(x + Group::kStateBytes, rest, [] {});
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (own.at(group, e, t)) narrow(at(d.igates, e, t), c[e] + rest[e]);
    }
    block_sync();  // x may go; igates are there
  }
}

}  // namespace fastrnn::cuda
