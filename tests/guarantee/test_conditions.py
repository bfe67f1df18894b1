"""Verdicts in words, and zeta by its formula."""

import jax
import numpy as np
import pytest

from sbx_deepspi import DeepSPI
from sbx_deepspi.guarantee import conditions
from sbx_deepspi.sb3 import checks
from tests.guarantee.models import BOX, CERTIFIABLE, trained
from tests.helpers import TINY_RUN, VECTOR, ToyEnv


def test_zeta_is_the_formula() -> None:
    model = trained(**CERTIFIABLE)
    c = jax.tree.map(float, model.certificate)
    assert c is not None
    length, sup, gamma = c.average_episode_length, c.importance_ratio.sup, 0.9
    zeta = paper = 0.0
    for latent, ratio in ((c.model, sup), (c.behaviour_model, 1.0)):
        assert latent.transition_lipschitz < 1 / gamma
        value = latent.reward_lipschitz / (1 - gamma * latent.transition_lipschitz)
        error = latent.reward_error + gamma * value * latent.transition_error
        zeta += ratio * length * error + latent.end_value
        paper += length * error / (1 / ratio - gamma)
    assert c.zeta == pytest.approx(zeta, rel=1e-3)
    assert c.paper_zeta == pytest.approx(paper, rel=1e-3)
    assert np.isfinite(c.latent_improvement)
    assert conditions.violations(c, gamma, True) == {}
    assert conditions.verdict(c, {}).startswith("certified: real improvement >= latent improvement - ")


def test_the_verdict_names_what_fails() -> None:
    certificate = jax.tree.map(float, trained(**CERTIFIABLE).certificate)
    assert certificate is not None
    ratio, model = certificate.importance_ratio, certificate.model
    broken = certificate.replace(importance_ratio=ratio.replace(sup=1.31))
    broken = broken.replace(
        model=model.replace(transition_lipschitz=0.5), behaviour_model=model.replace(transition_lipschitz=0.5)
    )
    failed = conditions.violations(broken, 0.99, True)
    assert conditions.verdict(broken, failed) == "not certified: D_IR sup 1.31 >= 1/gamma = 1.0101"
    cases = {
        "all_actions": (certificate, False, "sampled actions only"),
        "reward_lipschitz": (
            certificate.replace(behaviour_model=model.replace(reward_lipschitz=np.inf)),
            True,
            "K_R of pi_b unbounded",
        ),
        "transition_lipschitz": (
            certificate.replace(model=model.replace(transition_lipschitz=1.2)),
            True,
            "K_P 1.2 >=",
        ),
        "episode_end": (certificate.replace(episode_ended=False), True, "no episode ended in this rollout"),
        "finite": (certificate.replace(zeta=np.nan), True, "zeta is nan"),
    }
    for name, (case, all_actions, words) in cases.items():
        failed = conditions.violations(case, 0.9, all_actions)
        assert list(failed) == [name]
        assert words in failed[name]
    assert {"importance_ratio", *cases} == set(conditions.CONDITIONS)
    # defaults promise nothing, and say why
    certificate = trained().certificate
    assert certificate is not None
    failed = conditions.violations(certificate, 0.99, True)
    assert {"reward_lipschitz", "transition_lipschitz", "finite"} <= failed.keys()
    assert "zeta is" not in conditions.verdict(certificate, failed)


def test_the_longest_verdict_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    env = ToyEnv(VECTOR, BOX, length=99)
    model = DeepSPI("MlpPolicy", env, **{**TINY_RUN, "learning_rate": 1.0, "verbose": 1})
    model.learn(16)
    assert model.certificate is not None
    failed = conditions.violations(model.certificate, model.gamma, model.all_actions)
    assert {"all_actions", "transition_lipschitz", "episode_end"} <= failed.keys()
    assert conditions.verdict(model.certificate, failed) in capsys.readouterr().out


def test_gamma_of_one_is_not_certified() -> None:
    model = trained(gamma=1.0, policy_kwargs=CERTIFIABLE["policy_kwargs"])
    assert "importance_ratio" in conditions.violations(model.certificate, 1.0, True)  # type: ignore[arg-type]
    assert model.certificate is not None
    assert model.certificate.zeta == np.inf
    checks.reachable(("reward_lipschitz",), 1.0, True, {})  # has nothing to do with γ
