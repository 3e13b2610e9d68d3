"""Counters, pruners and pictures of a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from clients.harness import IN_AS_TORCH, Classifier, sample, tool


@tool("thop", "FLOPs and parameters", IN_AS_TORCH)
def thop(model: Classifier) -> Any:
    import thop

    return thop.profile(model, (sample(),), verbose=False)


def ptflops(model: Classifier, backend: str) -> Any:
    from ptflops import get_model_complexity_info

    size = tuple(sample().shape[1:])
    return get_model_complexity_info(
        model, size, as_strings=False, print_per_layer_stat=False, backend=backend
    )


@tool("ptflops", 'FLOPs and parameters, `backend="pytorch"`', IN_AS_TORCH)
def ptflops_pytorch(model: Classifier) -> Any:
    return ptflops(model, "pytorch")


@tool("ptflops", 'FLOPs and parameters, `backend="aten"`', IN_AS_TORCH)
def ptflops_aten(model: Classifier) -> Any:
    return ptflops(model, "aten")


@tool("calflops", "FLOPs and parameters", IN_AS_TORCH)
def calflops(model: Classifier) -> Any:
    from calflops import calculate_flops

    return calculate_flops(
        model, input_shape=tuple(sample().shape), print_results=False, output_as_string=False
    )


@tool("fvcore", "parameters, and FLOPs of the other layers")
def fvcore(model: Classifier) -> Any:
    from fvcore.nn import FlopCountAnalysis, parameter_count

    return FlopCountAnalysis(model, sample()).total(), parameter_count(model)


@tool("torch-pruning", "FLOPs and parameters", IN_AS_TORCH)
def torch_pruning_counts(model: Classifier) -> Any:
    import torch_pruning

    return torch_pruning.utils.count_ops_and_params(model, sample())


@tool("torch-pruning", "scores after pruning the linear layer")
def torch_pruning(model: Classifier) -> Any:
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(model, sample())
    prune = torch_pruning.prune_linear_out_channels
    graph.get_pruning_group(model.linear, prune, [0]).prune()
    return model(sample())


@tool("torchinfo", "parameters, multiply-adds, bytes")
def torchinfo(model: Classifier) -> Any:
    import torchinfo

    found = torchinfo.summary(model, input_data=sample(), verbose=0)
    return found.total_params, found.total_mult_adds, found.total_output_bytes


@tool("torchview", "nodes and edges")
def torchview(model: Classifier) -> Any:
    import torchview

    edges = torchview.draw_graph(model, sample()).edge_list
    return Counter(f"{tail.name} {head.name}" for tail, head in edges)


@tool("torchviz", "parameters in the graph")
def torchviz(model: Classifier) -> Any:
    import torchviz

    graph = torchviz.make_dot(model(sample()), dict(model.named_parameters())).source
    return {name: graph.count(name) for name, _ in model.named_parameters()}
