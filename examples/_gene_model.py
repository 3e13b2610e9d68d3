"""The hidden Markov model that dna_tagging.py learns from, and what it says of a sequence.

Hidden Markov models: L. Rabiner, Proc. IEEE 77, 1989; of genes: A. Krogh, I. S. Mian, D. Haussler,
Nucleic Acids Research 22, 1994.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BASES = "ACGT"
LABELS = ("outside", "start", "phase 0", "phase 1", "phase 2", "stop")
OUTSIDE = LABELS.index("outside")

MEAN_CODONS = 30  # of a gene, between its start and its stop codon
MEAN_GAP = 60  # bases from one gene to the next


class GeneModel:
    """The hidden Markov model that makes the sequences.

    A sequence is a chain of words of four kinds. A state is a kind and as much of a word of that
    kind as is written, ("codon", "GA"): so it has one base, its last, and one label.
    """

    def __init__(self) -> None:
        codons = ["".join(bases) for bases in itertools.product(BASES, repeat=3)]
        stops = ["TAA", "TAG", "TGA"]
        coding = [codon for codon in codons if codon not in stops]
        usage = np.random.default_rng(0).dirichlet(np.full(len(coding), 2.0))
        words: dict[str, dict[str, float]] = {
            "outside": dict.fromkeys(BASES, 1 / 4),
            "start": {"ATG": 1.0},
            "codon": dict(zip(coding, usage.tolist(), strict=True)),
            "stop": dict.fromkeys(stops, 1 / 3),
        }
        next_kind = {
            "outside": {"outside": 1 - 1 / MEAN_GAP, "start": 1 / MEAN_GAP},
            "start": {"codon": 1.0},
            "codon": {"codon": 1 - 1 / MEAN_CODONS, "stop": 1 / MEAN_CODONS},
            "stop": {"outside": 1.0},
        }
        begins: dict[tuple[str, str], float] = {}  # the probability that a word begins like that
        for kind, probabilities in words.items():
            for word, probability in probabilities.items():
                for end in range(1, len(word) + 1):
                    state = kind, word[:end]
                    begins[state] = begins.get(state, 0) + probability

        self.states = list(begins)
        self.base = torch.tensor([BASES.index(written[-1]) for _, written in self.states])
        self.label = torch.tensor(
            [
                LABELS.index(f"phase {len(written) - 1}" if kind == "codon" else kind)
                for kind, written in self.states
            ]
        )
        size = len(self.states)
        self.transition = torch.zeros(size, size, dtype=torch.float64)
        for i, (kind, written) in enumerate(self.states):
            for j, (kind_j, written_j) in enumerate(self.states):
                if written in words[kind]:  # the word is complete: another begins
                    if len(written_j) == 1:
                        follows = next_kind[kind].get(kind_j, 0)
                        self.transition[i, j] = follows * begins[kind_j, written_j]
                elif kind_j == kind and written_j[:-1] == written:
                    self.transition[i, j] = begins[kind, written_j] / begins[kind, written]
        self.initial = torch.where(self.label == OUTSIDE, 1 / 4, 0.0).double()

    def sample(self, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Bases and labels of new sequences, each (rows, length)."""
        successors = int((self.transition > 0).sum(1).max())
        probabilities, following = self.transition.topk(successors)
        path = [torch.multinomial(self.initial, rows, replacement=True, generator=generator)]
        for _ in range(length - 1):
            choice = torch.multinomial(probabilities[path[-1]], 1, generator=generator)
            path.append(following[path[-1]].gather(1, choice).squeeze(1))
        z = torch.stack(path, dim=1)
        return self.base[z], self.label[z]

    def emission(self, bases: Tensor) -> Tensor:
        """P(x[t] | z[t] = j), one or zero: (rows, length) to (rows, length, states)."""
        return (bases.unsqueeze(2) == self.base).double()

    def viterbi(self, bases: Tensor) -> Tensor:
        """The most probable path of states, (rows, length) each.

        best[t, j] = max over i (best[t-1, i] + log transition[i, j]) + log P(x[t] | z[t] = j)
        """
        log_emission, log_transition = self.emission(bases).log(), self.transition.log()
        best = self.initial.log() + log_emission[:, 0]
        pointers = []  # to the best state before, for each state
        for t in range(1, bases.size(1)):
            best, pointer = (best.unsqueeze(2) + log_transition).max(dim=1)
            best = best + log_emission[:, t]
            pointers.append(pointer)
        path = [best.argmax(1, keepdim=True)]
        for pointer in reversed(pointers):
            path.append(pointer.gather(1, path[-1]))
        return torch.cat(path[::-1], dim=1)

    def posterior(self, bases: Tensor) -> Tensor:
        """P(y[t] | x), the probability of each label of each base: (rows, length, labels).

        alpha[t] ~ P(z[t], x[0..t]) runs forward, beta[t] ~ P(x[t+1..] | z[t]) backward; each is
        scaled to the sum 1 at each step, and so is their product, P(z[t] | x).
        """
        emission, length = self.emission(bases), bases.size(1)
        alpha, beta = torch.empty_like(emission), torch.empty_like(emission)
        alpha[:, 0] = normalise(self.initial * emission[:, 0])
        for t in range(1, length):
            alpha[:, t] = normalise(alpha[:, t - 1] @ self.transition * emission[:, t])
        beta[:, -1] = 1
        for t in range(length - 1, 0, -1):
            beta[:, t - 1] = normalise((beta[:, t] * emission[:, t]) @ self.transition.T)
        return normalise(alpha * beta) @ F.one_hot(self.label, len(LABELS)).double()


def normalise(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
