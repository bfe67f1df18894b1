"""The report's numbers, against hand and NumPy."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sbx_deepspi.agent import Networks, WorldModel
from sbx_deepspi.networks.heads import Actor
from sbx_deepspi.report import certificates, measure
from sbx_deepspi.world_model.densities import Deterministic, Outputs

MATRIX = np.array([[2.0, 1.0], [0.0, 0.5]], np.float32)
SLOPE = np.array([3.0, 4.0], np.float32)


class LinearTransitions(nn.Module):
    """ẑ' = M z + a."""

    lipschitz_constant = None

    def __call__(self, latents: jax.Array, actions: jax.Array) -> Outputs:
        return Outputs(((latents @ MATRIX.T + actions)[..., None],), None)

    def as_latents(self, outputs: jax.Array) -> jax.Array:
        return outputs


class LinearRewards(nn.Module):
    """R̄ = w z."""

    lipschitz_constant = None

    def __call__(self, latents: jax.Array, actions: jax.Array) -> jax.Array:
        return latents @ SLOPE


class Constant(nn.Module):
    """The same for all."""

    value: float

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return jnp.full(len(inputs), self.value)


class Identity(nn.Module):
    """Nothing changes."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs


def linear(probability_of_end: float = 0.0) -> Networks:
    model = WorldModel(
        LinearTransitions(), LinearRewards(), Deterministic(None), lambda actions: actions, Constant(probability_of_end)
    )  # type: ignore[arg-type]
    actor = Actor(2, (), False, (), nn.tanh, False, -20.0)
    return Networks(Identity(), Identity(), actor, Constant(10.0), model, (2,), None, 1.0)


NOTHING = {name: {} for name in ("encoder", "torso", "critic", "transition_model", "reward_model", "termination_model")}
PARAMETERS = NOTHING | {
    "actor": {"Dense_0": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "log_std": jnp.full(2, -20.0)}
}
KEY = jax.random.PRNGKey(0)


def test_actions_are_followed_in_the_latent_model() -> None:
    generator = np.random.default_rng(0)
    latents, actions = generator.normal(size=(3, 2)), generator.normal(size=(4, 3, 2))
    followed = measure.follow(linear(), PARAMETERS, jnp.asarray(latents), jnp.asarray(actions), KEY)
    for predicted, taken in zip(followed, actions, strict=True):
        latents = latents @ MATRIX.T + taken
        np.testing.assert_allclose(predicted, latents, rtol=1e-5)


def test_imagined_returns_by_hand() -> None:
    """Rewards of 3, 6, ... in units of σ = 2, γ = ½, and the critic's 10 unless the model says that it is over."""
    settings = dict(reward_scale=2.0, gamma=0.5, horizon=2, n_dreams=3)
    latents = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    returns = measure.imagined_returns(linear(), PARAMETERS, latents, KEY, **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(returns, [2 * (3 + 3) + 2.5, 2.5], rtol=1e-5)
    returns = measure.imagined_returns(linear(1.0), PARAMETERS, latents, KEY, **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(returns, [6, 0], atol=1e-5)


def test_answers_are_the_networks() -> None:
    observations = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    answers = measure.answers(linear(0.25), PARAMETERS, observations, jnp.zeros((2, 2)), 2 * observations)
    np.testing.assert_allclose(answers.rewards, [3, 4])
    np.testing.assert_allclose(answers.next_latents, 2 * observations)
    np.testing.assert_allclose(answers.ends, 0.25)
    np.testing.assert_allclose(answers.values, 10)


def test_slopes_of_linear_maps() -> None:
    latents = jax.random.normal(KEY, (5, 2))
    slopes = measure.slopes(linear(), PARAMETERS, latents, jnp.zeros((5, 2)), KEY, n_iterations=20)
    np.testing.assert_allclose(slopes.reward, 5, rtol=1e-5)
    np.testing.assert_allclose(slopes.transition, np.linalg.norm(MATRIX, 2), rtol=1e-5)
    np.testing.assert_allclose(slopes.termination, 0)


def test_chunks_are_put_together() -> None:
    numbers = {"a": np.arange(5), "b": np.ones((5, 2))}
    doubled = measure.in_chunks(lambda tree: jax.tree.map(lambda array: 2 * array, tree), numbers, size=2)
    np.testing.assert_array_equal(doubled["a"], 2 * np.arange(5))
    assert doubled["b"].shape == (5, 2)


def test_calibration_by_hand() -> None:
    bins = measure.calibration(
        np.array([0.1, 0.2, 0.9, 1.0]), np.array([0.0, 1.0, 1.0, 0.5]), np.array([0.0, 0.5, 0.7, 1.0])
    )
    np.testing.assert_allclose(bins["predicted"], [0.15, 0.95])
    np.testing.assert_allclose(bins["seen"], [0.5, 0.75])
    np.testing.assert_array_equal(bins["count"], [2, 2])


def test_calibration_where_all_predictions_are_the_same() -> None:
    bins = measure.calibration(np.ones(3), np.arange(3.0), np.linspace(1, 1, 11))
    np.testing.assert_allclose(bins["seen"], [1])
    np.testing.assert_array_equal(bins["count"], [3])


def test_discounted_returns_by_hand() -> None:
    """One environment ends in a terminal state, one is cut by a time limit, and then both by the end of play."""
    no, yes = [False, False], [[False, False], [True, False], [False, False]]
    returns, weights = measure.discounted_returns(
        rewards=np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]),
        terminated=np.array(yes),
        truncated=np.array([no, [False, True], no]),
        next_values=np.array([[100.0, 100.0], [100.0, 8.0], [16.0, 32.0]]),
        gamma=0.5,
    )
    np.testing.assert_allclose(returns, [[2, 1 + 0.5 * 6], [2, 2 + 4], [4 + 8, 4 + 16]])
    np.testing.assert_allclose(weights, [[0, 0.25], [0, 0.5], [0.5, 0.5]])


def test_steps_count_up_to_the_episodes_end() -> None:
    dones = np.zeros((6, 2), bool)
    dones[2, 0] = True
    counts = measure.within_episode(dones, times=np.array([0, 1, 2, 0]), columns=np.array([0, 0, 0, 1]), n_steps=4)
    np.testing.assert_array_equal(counts.sum(axis=0), [3, 2, 1, 4])
    np.testing.assert_array_equal(counts[:, 1], [True, True, False, False])


def test_means_of_what_counts() -> None:
    means = measure.mean_where(
        np.array([[1.0, 3.0], [5.0, np.inf], [7.0, 9.0]]), np.array([[1, 1], [1, 0], [0, 0]]) > 0
    )
    np.testing.assert_array_equal(means, [2, 5, np.nan])


def test_spans_of_steps() -> None:
    assert measure.spans(np.array([True, True, False, True])) == [(1, 2), (4, 4)]
    assert measure.spans(np.zeros(3, bool)) == []


def test_principal_axes_are_those_of_the_covariance() -> None:
    points = np.random.default_rng(0).normal(size=(50, 4)) * [5, 3, 1, 0.1] + 7
    positions, shares = measure.principal_axes(points)
    variances = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(positions.var(axis=0, ddof=1), variances[:2])
    np.testing.assert_allclose(shares, variances[:2] / variances.sum())
    # one number for each point, and one that never varies: there is nothing to be seen on the second axis
    for few in (points[:, :1], np.ones((50, 3))):
        positions, shares = measure.principal_axes(few)
        np.testing.assert_allclose(positions[:, 1], 0, atol=1e-5)
        assert np.isfinite(shares).all()


def test_nearest_points() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    queries = points[[3, 11]] + 1e-3
    np.testing.assert_array_equal(measure.nearest(queries, points), [3, 11])


def test_correlations() -> None:
    x = np.array([1.0, 2.0, 4.0])
    assert np.isclose(measure.correlation(x, -2 * x + 1), -1)
    assert np.isnan(measure.correlation(x, np.ones(3)))


def test_dictionaries_of_observations_become_vectors() -> None:
    observations = {"a": np.ones((2, 3, 2)), "b": np.arange(2)}
    np.testing.assert_array_equal(measure.vectors(observations), [[1] * 6 + [0], [1] * 6 + [1]])


def test_failed_conditions_are_read_from_verdicts() -> None:
    failed = certificates.failures(
        [
            "certified: real improvement >= latent improvement - 0.1, with errors as 256 transitions show them",
            "not certified: D_IR sup 1.2 >= 1/gamma = 1.0101; K_R of pi_b unbounded; K_P 1.1 >= 1/gamma = 1.0101",
            "not certified: D_IR of sampled actions only; no episode ended in this rollout",
            "not certified: zeta is inf",
        ]
    )
    table = np.array(list(failed.values())).T.astype(int)
    np.testing.assert_array_equal(table, [[0] * 6, [1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]])


def test_a_file_of_certificates_may_be_unfinished_or_something_else(tmp_path: Path) -> None:
    whole = "timesteps,zeta,zeta_paper,verdict\n8,inf,2,not certified: K_R unbounded\n"
    (tmp_path / "killed.csv").write_text(whole + "16,1,2,certified\n24,in")
    (tmp_path / "monitor.csv").write_text('#{"t_start": 1}\nr,l,t\n1,2,3\n')
    (tmp_path / "other.csv").write_text("timesteps,zeta,zeta_paper,verdict\nabc,1,2,x\n")
    (tmp_path / "columns.csv").write_text("timesteps,zeta,verdict\n1,2,x\n")
    found = certificates.find(tmp_path, 20)
    assert found is not None and found.name == "killed.csv"
    numbers, failed = certificates.read(found, 20)
    assert numbers["zeta"].tolist() == [np.inf, 1] and failed["K_R finite"].tolist() == [True, False]
    # a model that was saved on the way has those up to there
    assert certificates.read(found, 8)[0]["zeta"].tolist() == [np.inf]
    assert certificates.find(tmp_path, 7) is None
