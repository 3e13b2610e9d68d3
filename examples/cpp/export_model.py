"""Write model.pt2 and input.pt for the C++ program beside this file.

python examples/cpp/export_model.py --out out/cpp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from fastrnn import RNN


class Tagger(nn.Module):
    """Scores of 5 classes for each step of input (B, T, 8), and the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN(8, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(64, 5)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        output, hn = self.rnn(input)
        return self.scores(output), hn


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cpp"), help="folder to write")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model, input = Tagger().eval(), torch.randn(3, 20, 8)
    sizes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=4096)}
    with torch.no_grad():
        exported = torch.export.export(model, (input,), dynamic_shapes=(sizes,))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(out / "model.pt2"))
        other = torch.randn(2, 11, 8)  # sizes that the compiler has not seen
        torch.save(other, out / "input.pt")
        torch.save(model(other), out / "expected.pt")
    print(f"wrote {out / 'model.pt2'}, {out / 'input.pt'} and {out / 'expected.pt'}")


if __name__ == "__main__":
    main()
