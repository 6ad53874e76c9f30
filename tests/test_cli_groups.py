"""Options that several commands share are written once, and are options like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from casestudy.cli.groups import spread


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1, help="How wide.")] = 3
    deep: Annotated[bool, typer.Option("--deep", help="Whether it is deep.")] = False

    @property
    def area(self) -> int:
        return self.width * (2 if self.deep else 1)


SIZE = Size()


def box(
    name: str, size: Size = SIZE, loud: Annotated[bool, typer.Option("--loud")] = False
) -> None:
    print(name, size.area, loud)


def call(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(spread(box))
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_a_groups_fields_are_options_and_come_back_as_the_group() -> None:
    assert call("a") == (0, "a 3 False\n")
    assert call("a", "--width", "5", "--deep", "--loud") == (0, "a 10 True\n")


def test_they_are_checked_and_explained_in_the_groups_place() -> None:
    status, said = call("a", "--width", "0")
    assert (status, "--width" in said) == (2, True)
    _, said = call("--help")
    assert said.index("--width") < said.index("--deep") < said.index("--loud")
    assert "How wide." in said


def test_an_option_twice_is_an_error() -> None:
    def twice(width: int, size: Size = SIZE) -> None: ...

    twice.__annotations__ = {"width": int, "size": Size}
    with pytest.raises(TypeError, match="twice has an option twice"):
        spread(twice)


def test_a_command_without_groups_stays_as_it_is() -> None:
    assert spread(call) is call
