"""Random problems: one call of the library, described by a few plain values that shrink."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from guarded import LAYOUTS
from hypothesis import strategies as st

EXTENDED = ("extended", "kernels_of_extended", "LeakyRNN")  # with leaks, gates, all layers' output
PLAIN = ("RNN", "RNNCell", "step", "functional", "operator", "kernels_of_operators", "raw")
ENTRIES = PLAIN + EXTENDED
DTYPES = ("float32", "float64", "bfloat16", "float16")
NEVER = 2**63 - 1


@dataclass(frozen=True)
class Problem:
    """A call; its values come from ``seed``. Its repr names what differs from the defaults."""

    entry: str = "RNN"
    dtype: str = "float32"
    threads: int = 1  # the results on one thread are the same
    seq_len: int = 1
    batch: int = 1
    input_size: int = 1
    hidden_size: int = 1
    num_layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"
    bias: bool = True
    hx: bool = True
    batch_first: bool = False
    unbatched: bool = False
    rows: str = "padded"  # or "lengths", "packed"
    unsorted: bool = False  # packed from rows in another order
    extra_rows: int = 0  # of packed data, beyond its batch sizes
    reset: bool = False
    dropout: bool = False
    scale: float = 1.0  # of the weights
    garbage: str = "nan"  # or "inf": what stands where it must not matter
    input_layout: str = "dense"
    hx_layout: str = "dense"
    weights_layout: str = "dense"
    gradients_layout: str = "dense"
    marks_layout: str = "dense"  # of lengths and reset
    gradients: str = "both"  # or "output", "hn", or "none" where the layers have one
    frozen: int = 0  # bits: of input, hx, weights, gates, alpha, those whose gradient is not wanted
    form: str = "rate"  # or "current"
    alpha: float = 1.0
    leak: str = "number"  # or "units": from alpha to 1; "shared" by layers, or a "parameter"
    gates: str = ""  # or of the "first" layer, or of "all"
    layers: bool = False  # every layer's output is returned
    grad_layers: bool = False  # and has a gradient
    plan: tuple[tuple[str, Any], ...] = ()  # what is forced of the raw kernels' plan
    seed: int = 0

    def __repr__(self) -> str:
        given = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        )
        return f"Problem({', '.join(given)})"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def extended(self) -> bool:
        return self.entry in EXTENDED

    @property
    def leaks(self) -> bool:
        return self.extended and (self.form, self.leak, self.alpha) != ("rate", "number", 1.0)

    @property
    def work(self) -> int:
        """Multiply-adds forward."""
        hidden, features = self.hidden_size, self.hidden_size * self.directions
        inputs = self.input_size + (self.num_layers - 1) * features
        per_row = self.directions * hidden * (inputs + self.num_layers * hidden)
        return self.seq_len * self.batch * per_row


# The sizes around which a plan or a kernel does something else: vectors of 2 to 16 elements, panels
# of up to 4 vectors, tiles of 3, 6, 8 and 12 rows, 16 and 40 rows for weights as they came, blocks
# of 96 rows and of 256 rows of all steps, units in chunks of 256.
ROWS = [5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 24, 25, 39, 40, 41, 63, 95, 96, 97, 193, 200]
STEPS = [7, 8, 9, 10, 12, 16, 17, 20, 24, 33, 40, 63, 97, 128, 255, 256, 257, 300]
FEATURES = [7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 80, 95, 96, 97,
            112, 127, 128, 129, 130, 143, 160, 161, 192, 193, 200]  # fmt: skip
LARGE = [255, 256, 257, 272, 290, 320, 511, 512, 513, 600, 800, 1030]

# Work of a call: most problems are small, that many run.
BUDGETS = [100_000] * 12 + [1_000_000] * 5 + [8_000_000] * 2 + [60_000_000]

few = st.integers(1, 6)
steps = st.one_of(few, few, few, st.sampled_from(STEPS))
rows = st.one_of(few, few, st.sampled_from(ROWS))
features = st.one_of(few, st.sampled_from(FEATURES), st.sampled_from(FEATURES))
large = st.one_of(few, st.sampled_from(FEATURES), st.sampled_from(LARGE))
flag = st.booleans()
rarely = st.integers(0, 7).map(lambda n: n == 7)
often_dense = st.one_of(st.just("dense"), st.sampled_from(LAYOUTS))
SCALES = {
    "tanh": [1.0, 1.0, 1.0, 0.1, 1e-3, 1e-8, 1e-30, 3.0, 30.0, 1e3],
    "relu": [1.0, 1.0, 0.1, 3.0, 10.0],
}
FORCED = st.fixed_dictionaries(
    {},
    optional={
        "share_columns": flag,
        "share_input_grad": flag,
        "form": st.sampled_from(["packed", "as they came"]),
        "split": flag,
        "opposed": flag,
        "fused_rows": st.sampled_from([0, 3, 12, NEVER]),
        "fused_rows_above": st.sampled_from([0, 3, 12, NEVER]),
        "fetch_rows": flag,
        "fetch_w_ih": flag,
        "fetch_w_ih_above": flag,
        "fetch_w_hh": flag,
    },
)
strategies: dict[str, st.SearchStrategy[Any]] = {
    "dtype": st.sampled_from(DTYPES),
    "threads": st.sampled_from([1, 2, 1, 2, 3, 4]),
    "budget": st.sampled_from(BUDGETS),
    "num_layers": st.sampled_from([1, 1, 1, 2, 2, 3]),
    "nonlinearity": st.sampled_from(["tanh", "tanh", "relu"]),
    "rows": st.sampled_from(["padded", "padded", "lengths", "packed"]),
    "extra_rows": st.sampled_from([0, 0, 1, 5]),
    "garbage": st.sampled_from(["nan", "inf"]),
    "gradients": st.sampled_from(["both", "both", "both", "output", "hn"]),
    "frozen": st.one_of(st.just(0), st.just(0), st.integers(0, 2**14 - 1)),
    "seed": st.integers(0, 2**31 - 1),
}
scales = {name: st.sampled_from(values) for name, values in SCALES.items()}
MARKED = ("functional", "RNN", "operator", "kernels_of_operators", "raw", *EXTENDED)
# These take a dropout mask, those above lengths and packed rows.
OPERATORS = ("operator", "kernels_of_operators", "raw", "extended", "kernels_of_extended")
ALPHAS = [1.0, 0.5, 0.1, 0.1, 0.02, 1e-3, 1e-5, 1e-8]


@st.composite
def problems(draw: st.DrawFn, entries: tuple[str, ...], isa: str = "") -> Problem:
    entry = draw(st.sampled_from(entries))
    names = ("dtype", "threads", "nonlinearity", "gradients", "frozen", "garbage", "seed")
    of: dict[str, Any] = {name: draw(strategies[name]) for name in names}
    budget = draw(strategies["budget"])
    wide = large if budget >= 8_000_000 else features
    of |= {"entry": entry, "seq_len": draw(steps), "batch": draw(rows)}
    of |= {"input_size": draw(wide), "hidden_size": draw(wide)}
    of["scale"] = draw(scales[of["nonlinearity"]])
    of |= {"bias": not draw(rarely), "hx": not draw(rarely), "reset": draw(rarely)}
    for name in ("input", "hx", "weights", "gradients", "marks"):
        of[f"{name}_layout"] = draw(often_dense)
    if entry != "RNNCell":
        of["num_layers"] = draw(strategies["num_layers"])
    if entry in MARKED:
        of |= {"bidirectional": draw(flag), "rows": draw(strategies["rows"])}
        of["batch_first"] = draw(flag) and of["rows"] != "packed"
        if of["rows"] == "packed":
            of |= {"extra_rows": draw(strategies["extra_rows"]), "unsorted": draw(flag)}
    if entry in OPERATORS:
        of["dropout"] = of["num_layers"] > 1 and draw(flag)
    else:
        of["unbatched"] = of.get("rows", "padded") == "padded" and draw(rarely)
    if entry in EXTENDED:
        kinds = ["number", "units", "units"] + ["shared", "parameter"] * (entry == "LeakyRNN")
        of |= {
            "form": draw(st.sampled_from(["rate", "current"])),
            "leak": draw(st.sampled_from(kinds)),
        }
        of |= {"alpha": draw(st.sampled_from(ALPHAS)), "layers": draw(flag)}
        of["gates"] = draw(st.sampled_from(["", "first", "all"]))
        of["grad_layers"] = of["layers"] and draw(flag)
        if of["grad_layers"] and draw(rarely):
            of["gradients"] = "none"
    if entry == "raw":
        of["plan"] = tuple(draw(FORCED).items())
    return fitted(Problem(**of), budget, isa)


def fitted(p: Problem, budget: int, isa: str = "") -> Problem:
    """The nearest problem of at most this work, and one that makes sense."""
    change: dict[str, Any] = {}
    if p.unbatched:
        change["batch"] = 1
    most = {"RNNCell": 4, "step": 4}.get(p.entry, NEVER)
    # Errors grow from step to step where weights are large, and so does what relu returns.
    if p.scale > 1:
        most = min(most, 8 if p.scale < 10 else 3)
    scale = p.scale
    if p.dtype in ("bfloat16", "float16"):  # of few bits not one would be left
        scale = change["scale"] = min(scale, 3.0 if p.nonlinearity == "tanh" else 1.0)
    if scale > 10:
        most = min(most, 2)
        change |= {"num_layers": 1, "dropout": False}
    change["seq_len"] = min(p.seq_len, most)
    if isa == "avx512" and p.dtype == "bfloat16" and p.entry != "raw":
        change["dtype"] = "float32"  # there the extension has other kernels for bfloat16
    if p.entry not in ("RNN", "functional", "LeakyRNN"):
        change["unsorted"] = False
    if p.nonlinearity == "relu":  # units have signs of their own
        if p.weights_layout.startswith("expanded"):
            change["weights_layout"] = "dense"
        if p.gates and p.marks_layout in ("windows", "expanded0"):
            change["marks_layout"] = "dense"
        if p.form == "current" and p.hx_layout in ("windows", "expanded0"):
            change["hx_layout"] = "dense"
    p = dataclasses.replace(p, **change)
    # Sums are split only in tiles of a row or two.
    plan = dict(p.plan)
    if p.batch > 2 and plan.pop("split", False):
        p = dataclasses.replace(p, plan=tuple(plan.items()))
    while p.work > budget and (p.seq_len > 1 or p.batch > 1):
        longer = p.seq_len >= p.batch
        half: dict[str, Any] = {"seq_len": p.seq_len // 2} if longer else {"batch": p.batch // 2}
        p = dataclasses.replace(p, **half)
    return p
