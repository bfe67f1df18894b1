"""Whether the bound's conditions hold, in words, and a certificate's numbers by the names that they have in logs."""

import math

from sbx_deepspi.guarantee.measure import N_SAMPLED, Certificate

CONDITIONS = ("importance_ratio", "all_actions", "reward_lipschitz", "transition_lipschitz", "episode_end", "finite")
"""What the bound needs, by name."""


def limit_of(gamma: float) -> str:
    """
    :param gamma: γ
    :return: 1/γ, as the user reads it
    """
    return f"1/gamma = {1 / gamma if gamma > 0 else math.inf:.4f}"


def violations(certificate: Certificate, gamma: float, all_actions: bool) -> dict[str, str]:
    """
    Which of the bound's conditions fail, each with a sentence.

    :param certificate: numbers on the host
    :param gamma: γ
    :param all_actions: whether D_IR is over every action, not only over the sampled ones
    :return: name → what is wrong, briefly
    """
    limit = limit_of(gamma)
    failed: dict[str, str] = {}
    sup = float(certificate.importance_ratio.sup)
    if not sup * gamma < 1:
        failed["importance_ratio"] = f"D_IR sup {sup:.4g} >= {limit}"
    if not all_actions:
        failed["all_actions"] = "D_IR of sampled actions only"
    for whose, model in ((" of pi_b", certificate.behaviour_model), ("", certificate.model)):
        k_reward, k_transition = float(model.reward_lipschitz), float(model.transition_lipschitz)
        if not math.isfinite(k_reward):
            failed["reward_lipschitz"] = f"K_R{whose} unbounded"
        if not math.isfinite(k_transition):
            failed["transition_lipschitz"] = f"K_P{whose} unbounded"
        elif not k_transition * gamma < 1:
            failed["transition_lipschitz"] = f"K_P{whose} {k_transition:.4g} >= {limit}"
    if not certificate.episode_ended:
        failed["episode_end"] = "no episode ended in this rollout"
    if not math.isfinite(certificate.zeta):
        failed["finite"] = f"zeta is {float(certificate.zeta)}"
    return failed


def verdict(certificate: Certificate, failed: dict[str, str]) -> str:
    """
    :param certificate: numbers on the host
    :param failed: see :func:`violations`
    :return: one line for the user
    """
    if failed:
        # where another condition fails, ζ is infinite because of it
        reasons = [what for condition, what in failed.items() if condition != "finite"] or failed.values()
        return f"not certified: {'; '.join(reasons)}"
    return (
        f"certified: real improvement >= latent improvement - {float(certificate.zeta):.4g}, with errors as "
        f"{N_SAMPLED} transitions show them"
    )


def numbers(certificate: Certificate, all_actions: bool) -> dict[str, float]:
    """
    A certificate by the names that it has in logs.

    :param certificate: numbers on the host
    :param all_actions: whether D_IR is over every action; if not, its names say so
    :return: name → number
    """
    sampled = "" if all_actions else "_sampled"
    named = {
        f"importance_ratio_inf{sampled}": certificate.importance_ratio.inf,
        f"importance_ratio_sup{sampled}": certificate.importance_ratio.sup,
        "L_R": certificate.model.reward_error,
        "L_P": certificate.model.transition_error,
        "L_end": certificate.model.end_value,
        "L_R_standard_error": certificate.standard_errors.reward,
        "L_P_standard_error": certificate.standard_errors.transition,
        "L_end_standard_error": certificate.standard_errors.end,
        "K_R": certificate.model.reward_lipschitz,
        "K_P": certificate.model.transition_lipschitz,
        "K_V": certificate.value_lipschitz,
        "average_episode_length": certificate.average_episode_length,
        "zeta": certificate.zeta,
        "zeta_paper": certificate.paper_zeta,
        "latent_improvement": certificate.latent_improvement,
    }
    if certificate.ends is not None:
        named |= {
            "L_E": certificate.ends.error,
            "K_E": certificate.ends.lipschitz,
            "L_end_endless": certificate.ends.endless_end_value,
            "zeta_endless": certificate.ends.endless_zeta,
        }
    return {name: float(number) for name, number in named.items()}


def behaviour_numbers(certificate: Certificate) -> dict[str, float]:
    """
    What ζ needs to know of the behaviour policy's own model, by name.

    :param certificate: numbers on the host
    :return: name → number
    """
    model = certificate.behaviour_model
    named = {
        "L_R_b": model.reward_error,
        "L_P_b": model.transition_error,
        "L_end_b": model.end_value,
        "K_R_b": model.reward_lipschitz,
        "K_P_b": model.transition_lipschitz,
    }
    return {name: float(number) for name, number in named.items()}
