"""Numbers in words."""

import math
import re
from collections.abc import Sequence

from sbx_deepspi.suite.report.statistics import Estimate, overlap

NONE = "–"


def number(value: float) -> str:
    """
    :param value: any
    :return: with three digits that count, or all before the point
    """
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(estimate: Estimate) -> str:
    """
    :param estimate: of one normalised number
    :return: it, and its interval if it has one
    """
    given = [estimate.value, *[estimate.low, estimate.high] * estimate.has_interval]
    is_small = max(abs(some) for some in given) < 0.1
    value, *interval = (number(float(some)) if is_small or abs(some) >= 1000 else f"{some:.2f}" for some in given)
    return f"{value} [{', '.join(interval)}]" if interval else value


def listed(names: Sequence[str]) -> str:
    """
    :param names: of things
    :return: a, b and c
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def of_seeds(seeds: Sequence[int]) -> str:
    """
    :param seeds: in any order
    :return: seed 0, or seeds 0–2, 5
    """
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
    return f"seed{'s' if len(seeds) > 1 else ''} {text}"


def count(n: int, what: str) -> str:
    """
    :param n: how many
    :param what: one of them
    :return: 1 run, 2 runs
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def compared(x: str, y: str, iqms: tuple[Estimate, Estimate], improvement: Estimate) -> str:
    """
    :param x: name of an algorithm
    :param y: of another
    :param iqms: of both
    :param improvement: P(X > Y)
    :return: which is better, as far as that can be said
    """
    of_x, of_y = iqms
    both = f"{x}'s IQM is {with_interval(of_x)}, {y}'s {with_interval(of_y)}: "
    probability = f" P({x} > {y}) is {with_interval(improvement)}"
    if not improvement.has_interval:
        return f"{both}one run of a game gives no interval, so this suite does not tell them apart.{probability}."
    if overlap(of_x, of_y):
        both += "the intervals overlap, so by their IQM this suite does not tell them apart."
    else:
        both += f"{x}'s interval lies {'above' if of_x.low > of_y.high else 'below'} {y}'s."
    if improvement.low <= 0.5 <= improvement.high:
        return f"{both}{probability}, and the interval includes 0.5."
    side = "above" if improvement.low > 0.5 else "below"
    return f"{both}{probability}, and the interval lies {side} 0.5."


def reason(part: str) -> str:
    """
    :param part: of a verdict, such as ``K_P 1.2 >= 1/gamma = 1.01``
    :return: the same without its numbers, so that equal reasons are counted as such
    """
    return re.sub(r" \S+ >= .*| is \S+$", lambda found: " >= 1/gamma" if ">=" in found[0] else " is not finite", part)


def reasons(verdict: str) -> list[str]:
    """
    :param verdict: of a certificate
    :return: why it does not certify; empty: it does
    """
    before, _, after = verdict.partition("not certified: ")
    return [] if before or not after else [reason(part) for part in after.split("; ")]
