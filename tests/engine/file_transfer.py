"""A trainer's weights by way of a file: vLLM's own engines of weight transfer all need a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

NAME = "forkjoin_test_file"


@dataclass
class Path(WeightTransferUpdateInfo):
    """Where the file is."""

    path: str = ""


class FileTransfer(WeightTransferEngine[WeightTransferInitInfo, Path]):
    """Puts the parameters of a file of safetensors in the place of the model's."""

    init_info_cls, update_info_cls = WeightTransferInitInfo, Path

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, str]) -> None:
        # vLLM's waits for an accelerator at its end, and raises where there is none
        self.receive_weights(self.parse_update_info(update_info))

    @torch.no_grad()
    def receive_weights(self, update_info: Path) -> None:
        parameters = dict(self.model.named_parameters())
        for name, tensor in load_file(update_info.path).items():
            parameters[name].copy_(tensor)


def register() -> None:
    """Let engines of this process have it."""
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, FileTransfer)
