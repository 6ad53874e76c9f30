"""The shapes in signatures are checked while the suite runs."""

import pytest
import torch
from jaxtyping import TypeCheckError

from casestudy.model.decoder import softmax
from casestudy.model.tokens import Tokens


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="scores"):
        softmax(torch.zeros(2, 3))


def test_a_wrong_dtype_in_a_dataclass_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="ids"):
        Tokens(torch.zeros(1, 2), torch.ones(1, dtype=torch.long))
