"""Converters of a model, and what runs the result."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from typing import Any

import torch

import fastrnn
from clients.harness import IN_AS_TORCH, Classifier, sample, tool


def onnxruntime(model: Classifier, dynamo: bool) -> Any:
    import onnxruntime

    x, file = sample(), io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model.eval(), (x,), file, dynamo=dynamo)
    session = onnxruntime.InferenceSession(file.getvalue())
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@tool("onnxruntime", "scores, `torch.onnx.export(dynamo=True)`")
def onnxruntime_dynamo(model: Classifier) -> Any:
    return onnxruntime(model, True)


@tool("onnxruntime", "scores, `torch.onnx.export(dynamo=False)`")
def onnxruntime_traced(model: Classifier) -> Any:
    return onnxruntime(model, False)


def openvino(model: Any, **options: Any) -> Any:
    import openvino

    compiled = openvino.compile_model(
        openvino.convert_model(model, **options), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(sample().numpy())[0]


@tool("openvino", "scores of a module", IN_AS_TORCH)
def openvino_of_a_module(model: Classifier) -> Any:
    return openvino(model.eval(), example_input=sample())


@tool("openvino", "scores of an exported program", IN_AS_TORCH)
def openvino_of_a_program(model: Classifier) -> Any:
    return openvino(torch.export.export(model.eval(), (sample(),)))


@tool("openvino", "scores of a program run through `fastrnn.decompositions()`")
def openvino_of_a_decomposed_program(model: Classifier) -> Any:
    return openvino(decomposed(model))


def decomposed(model: Classifier) -> torch.export.ExportedProgram:
    decompositions = {**torch.export.default_decompositions(), **fastrnn.decompositions()}
    program = torch.export.export(model.eval(), (sample(),))
    return program.run_decompositions(decompositions)


@tool("coremltools", "operators of the converted program", IN_AS_TORCH)
def coremltools(model: Classifier) -> Any:
    import coremltools

    x = sample()
    converted = coremltools.convert(
        torch.jit.trace(model.eval(), x),
        inputs=[coremltools.TensorType(shape=x.shape)],
        convert_to="mlprogram",
        skip_model_load=True,
    )
    return Counter(op.op_type for op in converted._mil_program.functions["main"].operations)
