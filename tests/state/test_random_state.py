"""Random numbers go on where they were."""

import random

import numpy as np
import torch

from app.state.random_state import RandomState


def test_random_numbers_continue_where_they_stopped() -> None:
    state = RandomState.model_validate_json(RandomState.capture().model_dump_json())
    drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    state.restore()
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn
