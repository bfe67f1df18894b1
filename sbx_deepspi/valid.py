"""What arguments must be, each in one sentence: what it is, what was given, what it must be."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def not_supported(**arguments: tuple[Any, tuple[Any, ...]]) -> None:
    """
    :param arguments: name → (value given, the values that change nothing, the default first)
    :raises ValueError: at the first that is another
    """
    for name, (given, supported) in arguments.items():
        if given not in supported:
            raise ValueError(f"DeepSPI does not support {name}={given!r}: leave it at {supported[0]!r}.")


def is_number(value: Any) -> bool:
    """
    :param value: anything
    :return: whether it is a real number, be it NumPy's
    """
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def in_unit_interval(**numbers: float) -> None:
    """
    :param numbers: name → value
    :raises ValueError: at the first outside [0, 1]
    """
    for name, number in numbers.items():
        if not is_number(number) or not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], but got {number!r}.")


def one_of(names: Iterable[str], **choices: str) -> None:
    """
    :param names: what can be chosen
    :param choices: name → value
    :raises ValueError: at the first that is not among them
    """
    for name, choice in choices.items():
        if choice not in names:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, but got {choice!r}.")


def whole_number(least: int, most: int, **numbers: Any) -> None:
    """
    :param least: of the range
    :param most: of the range
    :param numbers: name → value
    :raises ValueError: at the first that is no whole number in the range
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not (isinstance(number, (int, np.integer)) and least <= number <= most):
            raise ValueError(f"{name} must be a whole number from {least} to {most}, but got {number!r}.")


def boolean(**values: Any) -> None:
    """
    :param values: name → value
    :raises ValueError: at the first that is neither True nor False
    """
    for name, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, but got {value!r}.")


def positive_integer(**numbers: int) -> None:
    """
    :param numbers: name → value
    :raises ValueError: at the first that is not a whole number of at least 1
    """
    for name, number in numbers.items():
        if not (isinstance(number, (int, np.integer)) and number >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, but got {number!r}.")


def positive(**numbers: Any) -> None:
    """
    :param numbers: name → value; ``None`` and schedules are left to themselves
    :raises ValueError: at the first that is not positive
    """
    for name, number in numbers.items():
        if isinstance(number, (int, float)) and not number > 0:
            raise ValueError(f"{name} must be positive, but got {number!r}.")
