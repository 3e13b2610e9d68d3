"""Other libraries' RNNs as contestants: JAX, ONNX Runtime, oneDNN, in their own environment.

Each takes float32 rows of equal length. Its arrays are made beforehand; a step is the call that a
user repeats. ONNX Runtime has no training step.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import cpp_extension

from benchmarks.contestants import Contestant, Problem, Results
from benchmarks.machine import ROOT

NAMES = ["JAX", "ONNX Runtime", "oneDNN"]


def limit_threads(threads: int) -> None:
    """Set what JAX reads when it is first imported; the others take the number at each use."""
    os.environ["NPROC"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    eigen = "true" if threads > 1 else "false"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={eigen}"


def versions() -> dict[str, str]:
    import jax
    import onnxruntime

    found = {"jax": jax.__version__, "onnxruntime": onnxruntime.__version__}
    return {**found, "onednn": onednn().version()} if have_onednn() else found


def make_contestants(problem: Problem, training: bool, threads: int) -> list[Contestant]:
    shape = problem.shape
    if shape.ragged or shape.dtype != "float32":
        return []
    makers: list[Callable[..., Contestant]] = [make_jax]
    if not training:
        makers.append(make_onnxruntime)
    if have_onednn():
        makers.append(make_onednn)
    return [make(problem, training, threads) for make in makers]


def layers_of(problem: Problem) -> list[list[list[Tensor]]]:
    """Of each layer and direction: w_ih, w_hh, b_ih, b_hh."""
    weights = iter(problem.weights.values())
    shape = problem.shape
    return [
        [[next(weights) for _ in range(4)] for _ in range(shape.num_directions)]
        for _ in range(shape.num_layers)
    ]


def gradients(problem: Problem, input: Any, hx: Any, weights: list[Any]) -> Results:
    """Gradients by the names of the check; `weights` in nn.RNN's order."""
    named = dict(zip(problem.weights, weights, strict=True))
    pairs = {"input": input, "hx": hx, **named}
    return {f"grad_{name}": torch.as_tensor(np.array(x)) for name, x in pairs.items()}


def make_jax(problem: Problem, training: bool, threads: int) -> Contestant:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    activation = jnp.tanh if problem.shape.nonlinearity == "tanh" else jax.nn.relu

    def forward(leaves: Any) -> tuple[Any, Any]:
        input, hx, layers = leaves
        output, states = input, []
        for layer in layers:
            halves = []
            for direction, (w_ih, w_hh, b_ih, b_hh) in enumerate(layer):
                igates = output @ w_ih.T + (b_ih + b_hh)

                def step(h: Any, gates: Any, w_hh: Any = w_hh) -> tuple[Any, Any]:
                    h = activation(gates + h @ w_hh.T)
                    return h, h

                hn, half = jax.lax.scan(step, hx[len(states)], igates, reverse=direction == 1)
                states.append(hn)
                halves.append(half)
            output = jnp.concatenate(halves, -1) if len(halves) > 1 else halves[0]
        return output, jnp.stack(states)

    def loss(leaves: Any, grad_output: Any) -> tuple[Any, Any]:
        output, hn = forward(leaves)
        return jnp.vdot(output, grad_output), (output, hn)

    layers = [[[jnp.asarray(w) for w in d] for d in layer] for layer in layers_of(problem)]
    leaves = (jnp.asarray(problem.input), jnp.asarray(problem.hx), layers)
    grad_output = jnp.asarray(problem.grad_output)
    infer = jax.jit(forward)
    train = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def inference_step() -> Any:
        return jax.block_until_ready(infer(leaves))

    def training_step() -> Any:
        return jax.block_until_ready(train(leaves, grad_output))

    def results() -> Results:
        if not training:
            output, hn = inference_step()
            grads = {}
        else:
            (_, (output, hn)), (grad_input, grad_hx, grad_layers) = training_step()
            flat = [w for layer in grad_layers for d in layer for w in d]
            grads = gradients(problem, grad_input, grad_hx, flat)
        arrays = {"output": output, "hn": hn}
        return {**{k: torch.as_tensor(np.array(x)) for k, x in arrays.items()}, **grads}

    return Contestant("JAX", training_step if training else inference_step, results)


def make_onnxruntime(problem: Problem, training: bool, threads: int) -> Contestant:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    shape = problem.shape
    directions, hidden = shape.num_directions, shape.hidden_size
    nodes, values = [], []

    def constant(name: str, x: np.ndarray) -> str:
        values.append(numpy_helper.from_array(np.ascontiguousarray(x), name))
        return name

    x = "input"
    for i, layer in enumerate(layers_of(problem)):
        parts = [np.stack([d[k].numpy() for d in layer]) for k in range(4)]
        names = [constant(f"W{i}", parts[0]), constant(f"R{i}", parts[1])]
        names.append(constant(f"B{i}", np.concatenate(parts[2:], 1)))
        nodes.append(
            helper.make_node(
                "RNN",
                [x, *names, "", f"hx{i}"],
                [f"Y{i}", f"hn{i}"],
                hidden_size=hidden,
                direction="bidirectional" if directions == 2 else "forward",
                activations=[shape.nonlinearity.capitalize()] * directions,
            )
        )
        size = constant(f"size{i}", np.array([shape.seq_len, shape.batch, directions * hidden]))
        rows = f"Y{i}"
        if directions == 2:  # (T, D, B, H) to (T, B, D, H)
            nodes.append(helper.make_node("Transpose", [rows], [f"rows{i}"], perm=[0, 2, 1, 3]))
            rows = f"rows{i}"
        x = f"output{i}"
        nodes.append(helper.make_node("Reshape", [rows, size], [x]))
    inputs, outputs = ["input"], [x]
    sizes = {"input": problem.input.shape, x: problem.grad_output.shape}
    for i in range(shape.num_layers):
        inputs.append(f"hx{i}")
        outputs.append(f"hn{i}")
        sizes[f"hx{i}"] = sizes[f"hn{i}"] = (directions, shape.batch, hidden)
    infos = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items()}
    graph = helper.make_graph(
        nodes, "rnn", [infos[n] for n in inputs], [infos[n] for n in outputs], values
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # others run after it
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    hx = problem.hx.numpy().reshape(shape.num_layers, directions, shape.batch, hidden)
    feeds = {"input": problem.input.numpy(), **{f"hx{i}": h for i, h in enumerate(hx)}}
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for name in outputs:
        binding.bind_output(name)

    def step() -> None:
        session.run_with_iobinding(binding)

    def results() -> Results:
        step()
        output, *hn = (torch.as_tensor(np.array(v)) for v in binding.copy_outputs_to_cpu())
        return {"output": output, "hn": torch.cat(hn)}

    return Contestant("ONNX Runtime", step, results)


def have_onednn() -> bool:
    return Path(sys.prefix, "include/dnnl.hpp").exists() and any(
        Path(sys.prefix, "lib").glob("libdnnl.so*")
    )


@functools.cache
def onednn() -> ModuleType:
    build = ROOT / "build/benchmarks"
    build.mkdir(parents=True, exist_ok=True)
    library = Path(sys.prefix, "lib")
    module: ModuleType = cpp_extension.load(
        "fastrnn_onednn",
        [str(Path(__file__).parent / "peers_onednn.cpp")],
        extra_cflags=["-std=c++20", "-O2", "-g0"],
        extra_include_paths=[str(Path(sys.prefix, "include"))],
        extra_ldflags=[f"-L{library}", "-ldnnl", f"-Wl,-rpath,{library}"],
        build_directory=str(build),
    )
    return module


def make_onednn(problem: Problem, training: bool, threads: int) -> Contestant:
    shape = problem.shape
    directions = shape.num_directions
    layers = layers_of(problem)

    def stack(k: int) -> list[Tensor]:  # (1, D, inputs, 1, H)
        return [torch.stack([d[k].t() for d in x])[None, :, :, None].contiguous() for x in layers]

    hx = problem.hx.view(shape.num_layers, 1, directions, shape.batch, shape.hidden_size)
    biases = [torch.stack([d[2] + d[3] for d in x])[None, :, None].contiguous() for x in layers]
    rnn = onednn().Rnn(
        training,
        shape.nonlinearity == "relu",
        shape.bidirectional,
        problem.input,
        list(hx),
        stack(0),
        stack(1),
        biases,
        problem.grad_output,
    )

    def results() -> Results:
        rnn.step()
        output, *rest = rnn.results()
        hn, grads = rest[: shape.num_layers], rest[shape.num_layers :]
        found = {"output": output, "hn": torch.cat([x[0] for x in hn])}
        if training:
            grad_input, *by_layer = grads
            weights, grad_hx = [], []
            for i in range(0, len(by_layer), 4):
                state, w_ih, w_hh, b = by_layer[i : i + 4]
                grad_hx.append(state[0])
                for d in range(directions):
                    both = [w_ih[0, d, :, 0].t(), w_hh[0, d, :, 0].t(), b[0, d, 0], b[0, d, 0]]
                    weights += both
            found.update(gradients(problem, grad_input, torch.cat(grad_hx), weights))
        return found

    return Contestant("oneDNN", rnn.step, results)
