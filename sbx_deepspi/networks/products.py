"""Matrix products whose gradients are computed in the form that suits CPUs."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dense_product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """
    The product of many rows with one matrix; the matrix's gradient is computed transposed. That is a product over the
    many rows, which is faster the narrower its first factor; and k is at most m, in our layers.

    :param rows: shape (n, m)
    :param matrix: shape (m, k)
    :return: shape (n, k)
    """
    return rows @ matrix


def _dense_forward(rows: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rows @ matrix, (rows, matrix)


def _dense_backward(operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, matrix = operands
    # without the barrier XLA takes the transposition back into the product
    transposed = jax.lax.optimization_barrier(gradient.T @ rows)
    return gradient @ matrix.T, transposed.T


dense_product.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def batched_product(rows: jax.Array, matrices: jax.Array) -> jax.Array:
    """
    Many small products; their gradients by the matrices take a transposed copy of the rows, since XLA's fast path for
    small products asks for rows that lie in memory as they are multiplied.

    :param rows: shape (..., n, m)
    :param matrices: shape (..., m, k), the same leading axes
    :return: shape (..., n, k)
    """
    return rows @ matrices


def _batched_forward(rows: jax.Array, matrices: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rows @ matrices, (rows, matrices)


def _batched_backward(operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, matrices = operands
    # a copy that is really made: without the barrier XLA takes it back into the product
    columns = jax.lax.optimization_barrier(jnp.swapaxes(rows, -1, -2))
    return gradient @ jnp.swapaxes(matrices, -1, -2), columns @ gradient


batched_product.defvjp(_batched_forward, _batched_backward)
