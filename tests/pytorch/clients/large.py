"""Tools that are large to install: `make test-clients-all`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import fastrnn
from clients.converters import decomposed
from clients.harness import IN_AS_TORCH, Classifier, sample, sequences, tool


def with_the_class(model: Classifier, other: nn.Module) -> nn.Module:
    """A model that the tool has made, with the RNN's class of ours."""
    return fastrnn.replace(other) if type(model.rnn) is fastrnn.RNN else other


@tool("darts", "forecast of a `BlockRNNModel`, trained further after `fastrnn.replace`")
def darts(model: Classifier) -> Any:
    from darts import TimeSeries
    from darts.models import BlockRNNModel

    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    forecaster = BlockRNNModel(12, 4, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet)
    series = TimeSeries.from_values(np.sin(np.arange(60, dtype=np.float32)))
    forecaster.fit(series)
    with_the_class(model, forecaster.model)
    forecaster.fit(series, epochs=3)
    return forecaster.predict(4).values()


@tool("sktime", "probabilities of a `SimpleRNNClassifierTorch`, trained after `fastrnn.replace`")
def sktime(model: Classifier) -> Any:
    from sktime.classification.deep_learning.rnn import SimpleRNNClassifierTorch

    class Ours(SimpleRNNClassifierTorch):
        def _build_network(self, *args: Any) -> nn.Module:
            return with_the_class(model, super()._build_network(*args))

    x, y = (data.numpy() for data in sequences(32))
    x = x.swapaxes(1, 2)
    return Ours(num_epochs=2, batch_size=8).fit(x, y).predict_proba(x)


def executorch(program: torch.export.ExportedProgram) -> Any:
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    data = to_edge(program).to_executorch().buffer
    (scores,) = Runtime.get().load_program(data).load_method("forward").execute((sample(),))
    return scores


@tool("executorch", "scores of an exported program", IN_AS_TORCH)
def executorch_of_a_program(model: Classifier) -> Any:
    return executorch(torch.export.export(model.eval(), (sample(),)))


@tool("executorch", "scores of a program run through `fastrnn.decompositions()`")
def executorch_of_a_decomposed_program(model: Classifier) -> Any:
    return executorch(decomposed(model))
