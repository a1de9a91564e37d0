"""The draft network: the target's first layers, and a linear map from what they know to its final hidden state.

The map is folded into an output head of the draft's own, so that what is stored is an ordinary model of few layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DraftNetwork(nn.Module):
    """A body of few layers, the target's embeddings and final hidden states as its goal."""

    def __init__(self, target: Any, layers: int) -> None:
        """A copy of the target's first layers and final norm, in 32 bits; the map is the identity.

        Args:
            target: a causal language model of the Llama form.
            layers: how many are copied.
        """
        super().__init__()
        config = type(target.config).from_dict({**target.config.to_dict(), "num_hidden_layers": layers})
        config._attn_implementation = "sdpa"
        self.body = type(target.model)(config).float()
        with torch.no_grad():
            for name, parameter in self.body.named_parameters():
                parameter.copy_(target.get_parameter(f"model.{name}"))
        self.body.embed_tokens.requires_grad_(False)
        self.to_target = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        nn.init.eye_(self.to_target.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `(rows, tokens)` -> what the target's final hidden states are taken to be, `(rows, tokens, hidden)`."""
        mapped: Tensor = self.to_target(self.body(input_ids=ids, use_cache=False).last_hidden_state)
        return mapped

    def trained(self) -> dict[str, Tensor]:
        """The tensors that are not the target's, by name."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}


class RidgeFit:
    """Least squares from inputs to outputs, gathered piece by piece."""

    def __init__(self, size: int) -> None:
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.cross = torch.zeros(size, size, dtype=torch.float64)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Rows `(n, size)` of both."""
        inputs, outputs = inputs.double(), outputs.double()
        self.gram += inputs.T @ inputs
        self.cross += inputs.T @ outputs

    def solve(self, ridge: float = 1e-3) -> Tensor:
        """The matrix M `(size, size)` with `outputs ~ inputs @ M.T`.

        Args:
            ridge: added to the diagonal, as a share of its mean.
        """
        damped = self.gram + ridge * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        return torch.linalg.solve(damped, self.cross).T.float()
