"""The neighbourhood N^C(π_b) = {π : 2 - C ≤ D_IR^inf ≤ D_IR^sup ≤ C}, enforced instead of suggested."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi.agent import Networks
from sbx_deepspi.guarantee.measure import Certificate, importance_ratios
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Rollout

N_HALVINGS = 12
RELATIVE_PRECISION = 1 / 8
ROUNDING = 1e-5
"""What floats may lose between two programs that compute the same importance ratios."""

Params = TypeVar("Params")


class Search(struct.PyTreeNode):
    """
    How far to go from the behaviour policy's parameters to the updated ones.

    :param inside: the longest step known to be inside, as a fraction of the whole; at first 0
    :param outside: the shortest step known to be outside; at first 1
    :param n_tried: steps looked at
    """

    inside: jax.Array
    outside: jax.Array
    n_tried: jax.Array


def draw_back(behaviour: Params, updated: Params, is_inside: Callable[[Params], jax.Array]) -> tuple[Params, jax.Array]:
    """
    Go back from the updated parameters toward the behaviour policy's, in a straight line, until inside.

    Halve the interval between a step found inside and one found outside, until they are within
    :data:`RELATIVE_PRECISION` of each other or :data:`N_HALVINGS` steps were tried. Should even 1/4,096 of the step be
    outside, nothing of it is kept.

    :param behaviour: parameters of π_b, inside
    :param updated: parameters after the update
    :param is_inside: whether parameters are in the neighbourhood, a bool
    :return: parameters inside, the updated ones where these are; and the fraction of the step that was kept
    """

    def at(fraction: jax.Array) -> Params:
        between: Params = jax.tree.map(lambda old, new: (1 - fraction) * old + fraction * new, behaviour, updated)
        return between

    def is_coarse(search: Search) -> jax.Array:
        coarse = search.outside > (1 + RELATIVE_PRECISION) * search.inside
        return coarse & (search.n_tried < N_HALVINGS)

    def halve(search: Search) -> Search:
        middle = 0.5 * (search.inside + search.outside)
        inside = is_inside(at(middle))
        return Search(
            jnp.where(inside, middle, search.inside), jnp.where(inside, search.outside, middle), search.n_tried + 1
        )

    def search() -> tuple[Params, jax.Array]:
        fraction = jax.lax.while_loop(is_coarse, halve, Search(jnp.float32(0), jnp.float32(1), jnp.int32(0))).inside
        return at(fraction), fraction

    found: tuple[Params, jax.Array] = jax.lax.cond(is_inside(updated), lambda: (updated, jnp.float32(1)), search)
    return found


def project(
    networks: Networks, behaviour: Parameters, updated: Parameters, rollout: Rollout, clip_range: float | jax.Array
) -> tuple[Parameters, jax.Array]:
    """
    Draw an update back into the neighbourhood, measured on all of the rollout's states; see :func:`draw_back`.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param behaviour: parameters of π_b
    :param updated: parameters after the update
    :param rollout: T steps of N environments under π_b
    :param clip_range: ε; C is 1 + ε
    :return: parameters inside, and the fraction of the update that was kept
    """

    def is_inside(parameters: Parameters) -> jax.Array:
        ratio = importance_ratios(networks, parameters, rollout)
        below, above = ratio.sup <= 1 + clip_range - ROUNDING, ratio.inf >= 1 - clip_range + ROUNDING
        return jnp.logical_and(below, above)

    return draw_back(behaviour, updated, is_inside)


def outside_neighbourhood(certificate: Certificate, clip_range: float) -> dict[str, str]:
    """
    Whether the update has left N^C(π_b), C = 1 + ε.

    :param certificate: numbers on the host
    :param clip_range: ε
    :return: ``"neighbourhood"`` → what is wrong, or nothing
    """
    ratio = certificate.importance_ratio
    if 1 - clip_range - ROUNDING <= ratio.inf and ratio.sup <= 1 + clip_range + ROUNDING:
        return {}
    found, allowed = f"[{ratio.inf:.4g}, {ratio.sup:.4g}]", f"[{1 - clip_range:.4g}, {1 + clip_range:.4g}]"
    return {"neighbourhood": f"D_IR {found} leaves {allowed}"}
