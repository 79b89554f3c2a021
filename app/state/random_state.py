"""Random numbers go on after a restart: the state of all generators, as JSON."""

import base64
import random
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class RandomState(BaseModel):
    """Every generator that training could draw from. Byte strings are base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch_cpu: str
    torch_cuda: list[str]
    numpy: dict[str, Any]
    python: list[Any]

    @classmethod
    def capture(cls) -> "RandomState":
        numpy_state = dict(np.random.get_state(legacy=False))
        inner = dict(numpy_state["state"])
        numpy_state["state"] = {**inner, "key": inner["key"].tolist()}
        version_, internal, gauss = random.getstate()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            torch_cpu=_to_base64(torch.get_rng_state()),
            torch_cuda=[_to_base64(state) for state in cuda],
            numpy=numpy_state,
            python=[version_, list(internal), gauss],
        )

    def restore(self) -> None:
        torch.set_rng_state(_from_base64(self.torch_cpu))
        if self.torch_cuda and len(self.torch_cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_from_base64(state) for state in self.torch_cuda])
        legacy = dict(self.numpy)
        state = legacy["state"]
        legacy["state"] = {**state, "key": np.asarray(state["key"], dtype=np.uint32)}
        np.random.set_state(legacy)
        version_, internal, gauss = self.python
        random.setstate((version_, tuple(internal), gauss))


def _to_base64(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _from_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
