"""The shapes and types in signatures are checked while the suite runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from casestudy.model.decoder import softmax
from casestudy.model.tokens import Tokens
from tests.checked import checked

LONG, SHORT = torch.zeros(3), torch.zeros(2)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="scores"):
        softmax(torch.zeros(2, 3))


def test_a_wrong_dtype_in_a_dataclass_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="ids"):
        Tokens(torch.zeros(1, 2), torch.ones(1, dtype=torch.long))


@checked
def chosen(a: Float[Tensor, " n"], b: Float[Tensor, " n"], *, out: Tensor) -> Float[Tensor, " n"]:
    return out


def test_an_axis_has_one_size_in_all_arguments_and_the_result() -> None:
    assert chosen(LONG, LONG, out=LONG) is LONG
    assert chosen(SHORT, SHORT, out=SHORT) is SHORT  # of another call
    with pytest.raises(TypeCheckError, match="parameter b="):
        chosen(LONG, SHORT, out=LONG)
    with pytest.raises(TypeCheckError, match="return"):
        chosen(LONG, LONG, out=SHORT)


@checked
def pieces(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Iterator[int]:
    yield 1


def test_a_generator_is_checked_when_it_is_called() -> None:
    with pytest.raises(TypeCheckError):
        pieces(LONG, SHORT)


def adder(amount: Tensor) -> Callable[[int, Tensor], Tensor]:
    @checked
    def add(times: int, to: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return to + times * amount

    return add


def test_an_inner_function_is_checked_each_time_it_is_made_and_keeps_nothing() -> None:
    for number in (1, 2):
        amount = torch.full((), float(number))
        add = adder(amount)
        assert add(3, LONG).tolist() == [3 * number] * 3
        with pytest.raises(TypeCheckError, match="times"):
            add(1.5, LONG)  # type: ignore[arg-type]
        with pytest.raises(TypeCheckError, match="to="):
            add(1, LONG[None])
        kept = weakref.ref(amount)
        del amount, add
        gc.collect()
        assert kept() is None


@checked
@dataclass(frozen=True)
class Row:
    values: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    name: str = ""

    @checked
    def first(self, how_many: int) -> Tensor:
        return self.values[:how_many]


def test_fields_and_methods_of_a_dataclass_are_checked() -> None:
    row = Row(LONG, LONG)
    assert len(row.first(2)) == 2
    with pytest.raises(TypeCheckError, match="weights"):
        Row(LONG, SHORT)
    with pytest.raises(TypeCheckError, match="name"):
        Row(LONG, LONG, name=3)  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError, match="how_many"):
        row.first("2")  # type: ignore[arg-type]
