"""Random numbers go on after a restart: the state of all generators, as JSON.

A state is validated as a whole when it is read, so that no generator is set before all can be.
"""

import base64
import random
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from app.stores.documents import Part

_WORDS = 624  # of a Mersenne Twister
_CUDA_BYTES = 16  # seed and offset of a Philox generator

_Word = Annotated[int, Field(ge=0, lt=2**32)]


def _moves(words: list[int]) -> list[int]:
    if not any(words):
        raise ValueError("a generator of zeros alone")
    return words


def _of_torch(text: str) -> str:
    try:
        torch.Generator().set_state(_from_base64(text))
    except RuntimeError as error:
        raise ValueError(f"no state of torch's generator: {error}") from error
    return text


def _of_cuda(text: str) -> str:
    content = base64.b64decode(text, validate=True)
    if len(content) != _CUDA_BYTES or int.from_bytes(content[8:], "little") % 4:
        raise ValueError("no state of a GPU's generator")
    return text


def _of_python(words: tuple[int, ...]) -> tuple[int, ...]:
    if words[-1] > _WORDS or not any(words[:-1]):
        raise ValueError("no state of Python's generator")
    return words


class _TwisterState(Part):
    key: Annotated[list[_Word], Field(min_length=_WORDS, max_length=_WORDS), AfterValidator(_moves)]
    pos: int = Field(ge=0, le=_WORDS)


class _NumpyState(Part):
    bit_generator: Literal["MT19937"]
    state: _TwisterState
    has_gauss: Literal[0, 1]
    gauss: float


class RandomState(Part):
    """Every generator that training could draw from. Byte strings are base64."""

    torch_cpu: Annotated[str, Field(max_length=10_000), AfterValidator(_of_torch)]
    torch_cuda: Annotated[
        list[Annotated[str, Field(max_length=100), AfterValidator(_of_cuda)]], Field(max_length=64)
    ]
    numpy: _NumpyState
    python: tuple[
        Literal[3],
        Annotated[
            tuple[_Word, ...],
            Field(min_length=_WORDS + 1, max_length=_WORDS + 1),
            AfterValidator(_of_python),
        ],
        float | None,
    ]

    @classmethod
    def capture(cls) -> "RandomState":
        numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))
        inner = dict(numpy_state["state"])
        numpy_state["state"] = {**inner, "key": inner["key"].tolist()}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls.model_validate(
            {
                "torch_cpu": _to_base64(torch.get_rng_state()),
                "torch_cuda": [_to_base64(state) for state in cuda],
                "numpy": numpy_state,
                "python": random.getstate(),
            }
        )

    def restore(self) -> None:
        torch.set_rng_state(_from_base64(self.torch_cpu))
        if self.torch_cuda and len(self.torch_cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_from_base64(state) for state in self.torch_cuda])
        legacy = self.numpy.model_dump()
        state = legacy["state"]
        legacy["state"] = {**state, "key": np.asarray(state["key"], dtype=np.uint32)}
        np.random.set_state(legacy)
        random.setstate(self.python)


def _to_base64(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _from_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
