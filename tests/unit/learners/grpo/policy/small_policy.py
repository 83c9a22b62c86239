"""The settings of the policy under test, and what training changes of its model, each as one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

TEMPERATURE = 0.7
CHUNK = 3


def trained(model: PeftModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def weights(model: PeftModel) -> torch.Tensor:
    import torch

    return torch.cat([parameter.detach().flatten() for parameter in trained(model)])


def load(model: PeftModel, values: torch.Tensor) -> None:
    parameters = trained(model)
    pieces = values.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.data = piece.view_as(parameter).clone()


def gradients(model: PeftModel) -> torch.Tensor:
    import torch

    return torch.cat([parameter.grad.flatten() for parameter in trained(model)])
