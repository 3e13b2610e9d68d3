from collections.abc import Callable, Mapping

from torch import Tensor, dtype

def rnn(
    input: object,
    hx: Tensor | None,
    weights: object,
    has_biases: bool,
    num_layers: object,
    nonlinearity: str,
    bidirectional: bool,
    batch_first: bool,
    lengths: object,
    reset: object,
) -> tuple[Tensor, Tensor] | None: ...
def rnn_extended(
    input: object,
    hx: Tensor | None,
    weights: object,
    has_biases: bool,
    num_layers: object,
    nonlinearity: str,
    bidirectional: bool,
    batch_first: bool,
    lengths: object,
    reset: object,
    alpha: object,
    form: str,
    return_layers: bool,
) -> tuple[Tensor, ...] | None: ...
def rnn_step(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    has_biases: bool,
    num_layers: object,
    nonlinearity: str,
) -> tuple[Tensor, Tensor] | None: ...
def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
) -> Tensor | None: ...
def rnn_of_module(
    module: Mapping[str, object], input: object, hx: object, lengths: object, reset: object
) -> tuple[Tensor, Tensor] | None: ...
def leaky_of_module(
    module: Mapping[str, object],
    input: object,
    hx: object,
    lengths: object,
    reset: object,
    noise: object,
    return_layers: object,
) -> tuple[Tensor, ...] | None: ...
def step_of_module(
    module: Mapping[str, object], input: object, hx: object
) -> tuple[Tensor, Tensor] | None: ...
def leaky_step_of_module(
    module: Mapping[str, object], input: object, hx: object, noise: object
) -> tuple[Tensor, Tensor] | None: ...
def cell_of_module(module: Mapping[str, object], input: object, hx: object) -> Tensor | None: ...
def check_storages(weights: list[Tensor], **others: object) -> None: ...
def known_activation(pre: Tensor, value: Tensor, is_tanh: bool) -> Tensor: ...
def set_reference_backward(function: Callable[..., list[Tensor]]) -> None: ...
def set_extended_reference_backward(function: Callable[..., list[Tensor]]) -> None: ...
def cpu_kernels() -> str: ...
def cuda_configurations() -> list[tuple[str, dtype, bool]]: ...
def cpu_prefers_torch(batch: int, hidden_size: int) -> bool: ...

# In a build with CUDA.
def cuda_kernels() -> str: ...
def cuda_kernels_for(
    like: Tensor,
    seq_len: int,
    batch: int,
    hidden_size: int,
    bidirectional: bool,
    has_hx: bool,
    trains: bool,
    drops: bool,
) -> str: ...
def cuda_kernels_hash() -> str: ...
def cuda_missing() -> str: ...
def cuda_check(like: Tensor) -> list[tuple[str, dtype, str, float, float, str]]: ...
def cuda_why_no_kernels(device: int) -> str: ...
def set_cuda_kernel(name: str) -> str: ...
