"""The shapes and types in signatures are checked while the suite runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float, Int, Shaped, TypeCheckError, _storage
from torch import Tensor

from casestudy.model.decoder import softmax
from casestudy.model.tokens import Tokens
from tests.checked import CONTEXT, FULL_CHECK, checked, fits

ANNOTATIONS = (
    Float[Tensor, " n"],
    Float[Tensor, "n m"],
    Float[Tensor, "m n"],
    Float[Tensor, "n n"],
    Float[Tensor, "n 2"],
    Float[Tensor, "*rows n"],
    Float[Tensor, "n *rows"],
    Float[Tensor, "n *rows m"],
    Float[Tensor, "m ..."],
    Float[Tensor, "#n m"],
    Int[Tensor, "n m"],
    Bool[Tensor, " n"],
    Shaped[Tensor, " n"],
)
SHAPES = ((), (2,), (3,), (2, 2), (2, 3), (3, 2), (1, 2), (2, 3, 2))
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


@pytest.mark.parametrize("first", ANNOTATIONS, ids=str)
@pytest.mark.parametrize("second", ANNOTATIONS, ids=str)
def test_the_short_way_says_what_jaxtyping_says(first: Any, second: Any) -> None:
    """Of two arguments of one call: the same verdict on each, and the same axes known after."""
    values = [torch.zeros(shape) for shape in SHAPES]
    values.append(torch.zeros(2, 3, dtype=torch.long))

    def verdicts(check: Callable[[Any, Any], bool], a: Tensor, b: Tensor) -> object:
        with CONTEXT:
            found = check(first, a), check(second, b)
            return found, [dict(part) for part in _storage.get_shape_memo()]

    for a in values:
        for b in values:
            assert verdicts(fits, a, b) == verdicts(FULL_CHECK, a, b), (a.shape, b.shape)
    assert not fits(first, [1.0, 2.0])
