"""The words of docs/benchmarks.md that need no results. Lines are broken anew by the report."""

from __future__ import annotations

from benchmarks import timing

INTRODUCTION = """\
# Benchmarks

How fast `fastrnn.RNN` is beside `torch.nn.RNN` and other libraries, by class of shape. A ratio is
the other's time divided by ours: above 1, fastrnn is faster. Inference is a call without gradients;
training is forward and backward, to the gradients of the input, the initial state and every weight.
A whole training step also has other layers, a loss and an optimizer, which fastrnn does not speed
up. Tables give the geometric mean of a class, and its least ratio in brackets.

A name such as `B32-T20-I1-H64` gives batch, time steps, input size and hidden size; `L2` stands for
two layers.
"""

WHY = """\
## Why it is fast

**One call for all time steps and layers.** On the CPU `torch.nn.RNN` calls several operators per
time step and layer, and each of them checks its arguments, allocates its result and goes through
the dispatcher. In fastrnn, one operator runs all layers, directions and time steps, and shares one
set of threads among them. {calls}

**Weights stay packed and close.** The hidden-to-hidden weights serve every time step. Once per call
they are rearranged into the order in which the kernel reads them, and stay in cache for the whole
sequence as far as they fit. With few rows over all steps, rearranging would cost more than it
saves, and the weights are read in place. On a GPU, all kernels but the one for any size keep them
in registers and shared memory.

**A fused epilogue.** A tile of the pre-activation is summed in registers: biases, input product,
hidden product. The nonlinearity is applied before the result is written, so that only the hidden
state goes to memory.

**Backpropagation through time without a graph of steps.** A call is one node of autograd, whatever
its length. The backward loop does only what has to go step by step. The gradients of the weights
follow after it, as matrix products over the rows of all time steps.

{limit} [The lesson](rnn.md#6-why-steps-must-wait-and-what-a-fused-kernel-does-about-it)
explains each of these; [csrc/cpu](../csrc/cpu) and [csrc/cuda](../csrc/cuda) have the kernels.
"""

METHOD = f"""\
## Method

- **Same problem.** All contestants get the same random weights, inputs and initial states. Their
  outputs and gradients are compared with float64 before they are timed.
- **Interleaved.** The contestants run in one process. Each round times one sample of each, in
  shuffled order, so that a change of the clock or another program affects all of them.
- **Samples.** A sample repeats the call for at least {timing.SAMPLE_SECONDS * 1e3:g} ms. There are
  at least {timing.LEAST_ROUNDS} rounds, fewer if a row's time budget runs out.
- **Medians.** A time is the median of the samples. A ratio is the median, over rounds, of the ratio
  of the two samples of a round.
- **Warm-up.** Calls are repeated before the first round, and one more goes untimed before each
  sample of several calls. So weights and inputs are in cache as far as they fit.
- **Threads.** As `torch.set_num_threads` and the other libraries' own settings say. Tables are of
  one thread unless they say otherwise.
- **Quiet machine.** If other programs used more than {timing.OTHERS_ALLOWED:g} of a processor
  meanwhile, a row is measured again, and in the end marked as noisy.

[timing.py](../benchmarks/timing.py) has all of this, and [shapes.py](../benchmarks/shapes.py) the
shapes. On a GPU, CUDA events time the same rounds.
"""

RUN = """\
## Run it

```
make bench                       # a representative set, in minutes
make bench-full bench-peers      # everything on the CPU, in hours
make gpu-check                   # on a machine with a GPU
make bench-check                 # ten rows, beside the results of the same processor
make bench-report                # write this page, its tables and plots from the results

python -m benchmarks.compare --only small H512     # some classes or shapes
```

Every measured number on this page comes from a file in [benchmarks/results](../benchmarks/results).
"""
