"""TorchRL: a rollout by `step`, and a pass over all of it by `reset=`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from clients.harness import Classifier, H, I, gradients, tool

ROWS, STEPS = 4, 16  # environments, and time steps of the rollout


def memory() -> Any:
    """Episodes of 2 to 5 steps; at the end, the action should be the first cue's sign."""
    from torchrl.data import Binary, Categorical, Composite, Unbounded
    from torchrl.envs import EnvBase

    class Memory(EnvBase):
        def __init__(self) -> None:
            super().__init__(batch_size=[ROWS])
            self.observation_spec = Composite(observation=Unbounded((ROWS, I)), shape=[ROWS])
            self.action_spec = Categorical(2, shape=(ROWS,))
            self.reward_spec = Unbounded((ROWS, 1))
            self.done_spec = Binary(1, (ROWS, 1), dtype=torch.bool)
            self.cue, self.left = torch.zeros(ROWS, 1), torch.zeros(ROWS, 1)

        def _set_seed(self, seed: int | None) -> None:
            """Draw from torch's generator."""

        def _reset(self, given: Any, **options: Any) -> Any:
            chosen = torch.ones(ROWS, 1, dtype=torch.bool)
            if given is not None:
                chosen = given.get("_reset", chosen).view(ROWS, 1)
            self.cue = torch.where(chosen, torch.randn(ROWS, 1), self.cue)
            self.left = torch.where(chosen, torch.randint(2, 6, (ROWS, 1)), self.left)
            observation = torch.cat([self.cue, self.left, torch.zeros(ROWS, I - 2)], 1)
            return self.full_done_spec.zero().update({"observation": observation})

        def _step(self, given: Any) -> Any:
            self.left = self.left - 1
            action, right = given["action"].view(ROWS, 1), (self.cue > 0).long()
            done = self.left == 0
            observation = torch.cat([action, self.left, torch.zeros(ROWS, I - 2)], 1)
            reward = (done & (action == right)).float()
            found = {"observation": observation, "reward": reward, "done": done}
            return self.full_done_spec.zero().update(found | {"terminated": done})

    return Memory()


def step(rnn: nn.Module, x: Tensor, hx: Tensor, is_init: Tensor) -> tuple[Tensor, Tensor]:
    """One time step of `x` (B, I) from `hx` (L, B, H), or zeros where `is_init` (B, 1)."""
    if isinstance(rnn, fastrnn.RNN):
        return rnn.step(x, hx, reset=is_init)
    output, hn = rnn(x.unsqueeze(1), hx.masked_fill(is_init, 0))
    return output.squeeze(1), hn


def whole(rnn: nn.Module, x: Tensor, hx: Tensor, is_init: Tensor) -> Tensor:
    """All time steps of `x` (B, T, I), with `is_init` (B, T, 1): ours in one call."""
    if isinstance(rnn, fastrnn.RNN):
        return rnn(x, hx, reset=is_init)[0]
    outputs = []
    for x_t, is_init_t in zip(x.unbind(1), is_init.unbind(1), strict=True):
        output, hx = step(rnn, x_t, hx, is_init_t)
        outputs.append(output)
    return torch.stack(outputs, 1)


@torch.no_grad()
def rollout(model: Classifier) -> Any:
    """What `model` sees and does, a tensordict (B, T)."""
    from tensordict.nn import TensorDictModule
    from torchrl.data import Unbounded
    from torchrl.envs import Compose, InitTracker, TensorDictPrimer, TransformedEnv

    def act(x: Tensor, state: Tensor, is_init: Tensor) -> tuple[Tensor, ...]:
        output, hn = step(model.rnn, x, state.transpose(0, 1), is_init)
        return model.linear(output).argmax(1), output, hn.transpose(0, 1)

    policy = TensorDictModule(
        act,
        in_keys=["observation", "state", "is_init"],
        out_keys=["action", "output", ("next", "state")],
    )
    # It would begin episodes at ones, so that `is_init` matters in every one.
    primer = TensorDictPrimer(state=Unbounded((1, H)), default_value=1.0, expand_specs=True)
    environment = TransformedEnv(memory(), Compose(InitTracker(), primer))
    return environment.rollout(STEPS, policy, break_when_any_done=False)


def outputs_over(model: Classifier, seen: Any) -> Tensor:
    """The outputs (B, T, H) of a training pass over a rollout."""
    hx = seen["state"][:, 0].transpose(0, 1)
    return whole(model.rnn, seen["observation"], hx, seen["is_init"])


@tool("torchrl", "rollout by `step`, gradients of a pass by `reset=is_init`; `nn.RNN` in loops")
def torchrl(model: Classifier) -> Any:
    seen = rollout(model)
    scores = model.linear(outputs_over(model, seen))
    chances = scores.log_softmax(-1).gather(-1, seen["action"].unsqueeze(-1))
    (chances * seen["next", "reward"]).sum().backward()
    kept = {name: seen[name] for name in ("observation", "is_init", "action", "output")}
    return kept, scores, gradients(model)
