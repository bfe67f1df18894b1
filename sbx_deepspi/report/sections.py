"""The report's sections: what is measured, drawn, and said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sbx_deepspi import agent
from sbx_deepspi.agent import Networks
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.report import certificates, measure, pictures
from sbx_deepspi.report.measure import Answers, Played
from sbx_deepspi.report.page import Numbers, Picture, Section

N_BINS = 10
MOST_ACTIONS = 8  # that get a colour each
N_STARTS = 256  # of imagined steps
N_STEPS = 32  # imagined
SHOWN_STEPS = (1, 2, 4, 8, 16, 32)  # of a dream, as pictures
N_RETURNS = 128  # states whose returns are compared
HORIZON, N_DREAMS = 16, 8  # of the returns that are imagined
CRITICS_WEIGHT = 0.25  # the most that the critic may have in a real return
N_POINTS = 500  # of the latent space
N_SLOPES, N_ITERATIONS = 128, 20
MOST_NUMBERS = 6  # of an observation that is no image
CHUNK = 256  # transitions that go through the networks at a time
CRITIC = "the critic's value"


@dataclass(frozen=True)
class Subject:
    """
    What a report is about.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param reward_scale: σ, the unit of R̄
    :param gamma: γ
    :param draw: observations → pictures; ``None``: they are no images
    :param played: T steps of N environments
    :param answers: what the model says of them, arrays of shape (T, N, ...)
    """

    networks: Networks
    parameters: Parameters
    reward_scale: float
    gamma: float
    draw: Callable[[Any], np.ndarray] | None
    played: Played
    answers: Answers

    @classmethod
    def of(cls, networks: Networks, parameters: Parameters, played: Played, **others: Any) -> "Subject":
        """
        :param networks: with a world model
        :param parameters: of all networks
        :param played: T steps of N environments
        :param others: the rest
        :return: with the model's answers
        """
        parameters = agent.normalized(networks, parameters)
        flat = jax.tree.map(
            lambda array: array.reshape(-1, *array.shape[2:]),
            (played.observations, played.actions, played.next_observations),
        )
        ask = partial(jax.jit(partial(measure.answers, networks)), parameters)
        answers = measure.in_chunks(ask, *flat, size=CHUNK)
        shaped = jax.tree.map(lambda array: array.reshape(*played.rewards.shape, *array.shape[1:]), answers)
        return cls(networks, parameters, played=played, answers=shaped, **others)


@dataclass(frozen=True)
class Imagined:
    """
    Where the actions that were played lead in the latent model, from S starts.

    :param times: of the starts, shape (S,)
    :param columns: environments of the starts, shape (S,)
    :param latents: ẑ after 1 ... K steps, shape (K, S, ...)
    :param real: φ(s) after as many steps, shape (K, S, ...)
    :param counts: whether the episode had not ended before, bool, shape (K, S)
    """

    times: np.ndarray
    columns: np.ndarray
    latents: np.ndarray
    real: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, subject: Subject, generator: np.random.Generator) -> "Imagined":
        """
        :param subject: what the report is about
        :param generator: draws the starts
        :return: imagined steps
        """
        n_times, n_envs = subject.played.rewards.shape
        n_steps = min(N_STEPS, n_times)
        chosen = generator.choice((n_times - n_steps + 1) * n_envs, N_STARTS)
        times, columns = chosen // n_envs, chosen % n_envs
        at = times + np.arange(n_steps)[:, None], columns
        latents = jax.jit(partial(measure.follow, subject.networks))(
            subject.parameters,
            subject.answers.latents[times, columns],
            subject.played.actions[at],
            jax.random.PRNGKey(1),
        )
        counts = measure.within_episode(subject.played.dones, times, columns, n_steps)
        return cls(times, columns, np.asarray(latents), subject.answers.next_latents[at], counts)


# --- one step ---------------------------------------------------------------------------------------


def rewards(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: rewards predicted against seen
    """
    predicted, seen = subject.reward_scale * subject.answers.rewards.ravel(), subject.played.rewards.ravel()
    series = by_action(subject, predicted, seen, np.linspace(predicted.min(), predicted.max(), N_BINS + 1))
    error, of_mean = np.abs(predicted - seen).mean(), np.abs(seen - seen.mean()).mean()
    found = (
        f"Over {len(seen):,} steps the predicted reward is {error:.3g} from the one seen, on average; one that always "
        f"predicted the mean, {seen.mean():.3g}, would be {of_mean:.3g} from it."
    )
    picture = Picture(
        "rewards",
        "Rewards predicted against seen",
        pictures.calibration(series, "predicted reward", "mean reward seen"),
        "Good: points lie on the grey line, for every action, and are spread along it as far as rewards differ. Large "
        "points stand for many steps.",
    )
    numbers = series | {"all steps": {"mean error": np.array([error]), "mean error of the mean": np.array([of_mean])}}
    return Section("rewards", "Rewards", found, [picture], numbers, table_of(series))


def ends(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: terminations predicted against seen
    """
    terminated = subject.played.terminated.ravel()
    seen = f"{terminated.sum():,} of {len(terminated):,} steps led to a terminal state"
    if not subject.networks.has_ends:
        return Section(
            "ends",
            "Ends of episodes",
            f"{seen}; this model does not predict ends. DeepSPI(..., termination_model=True) learns them, and DreamSPI "
            "does unless told otherwise.",
        )
    predicted = subject.answers.ends.ravel()
    series = by_action(subject, predicted, terminated.astype(float), np.linspace(0, 1, N_BINS + 1))
    means = {
        where: predicted[which].mean(keepdims=True)
        for where, which in (("where there was one", terminated), ("elsewhere", ~terminated))
        if which.any()
    }
    picture = Picture(
        "ends",
        "Terminations predicted against seen",
        pictures.calibration(series, "predicted probability of an end", "share of ends seen"),
        "Good: points lie on the grey line, and most lie near its two ends: the model is sure, and right. Large points "
        "stand for many steps.",
    )
    says = ", ".join(f"{mean[0]:.3g} {where}" for where, mean in means.items())
    found = f"{seen}. The mean probability of an end that the model predicts is {says}."
    numbers = series | {"all steps": {f"mean {where}": mean for where, mean in means.items()}}
    return Section("ends", "Ends of episodes", found, [picture], numbers, table_of(series))


def by_action(
    subject: Subject, predicted: np.ndarray, seen: np.ndarray, edges: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """
    :param subject: what the report is about
    :param predicted: shape (T · N,)
    :param seen: shape (T · N,)
    :param edges: of the bins
    :return: calibration for each action, where these are a few; else for all together
    """
    actions = subject.played.actions.reshape(len(seen), -1)
    is_discrete = np.issubdtype(actions.dtype, np.integer) and actions.shape[1] == 1
    if not is_discrete or actions.max() >= MOST_ACTIONS:
        return {"all actions": measure.calibration(predicted, seen, edges)}
    taken = {f"action {action}": actions[:, 0] == action for action in np.unique(actions)}
    return {name: measure.calibration(predicted[which], seen[which], edges) for name, which in taken.items()}


def table_of(series: dict[str, dict[str, np.ndarray]]) -> list[tuple[str, ...]]:
    """
    :param series: calibration by name
    :return: means by name, as cells
    """
    rows: list[tuple[str, ...]] = [("", "steps", "predicted", "seen")]
    for name, bins in series.items():
        means = (np.average(bins[quantity], weights=bins["count"]) for quantity in ("predicted", "seen"))
        rows.append((name, f"{bins['count'].sum():,}", *(f"{mean:.3g}" for mean in means)))
    return rows


# --- many steps -------------------------------------------------------------------------------------


def open_loop(subject: Subject, imagined: Imagined, generator: np.random.Generator) -> Section:
    """
    :param subject: what the report is about
    :param imagined: imagined steps
    :param generator: draws pairs of latent states
    :return: how far imagined latent states are from the real ones
    """
    n_steps, counts = len(imagined.latents), imagined.counts
    starts = subject.answers.latents[imagined.times, imagined.columns]

    def mean_distance(others: np.ndarray) -> np.ndarray:
        return measure.mean_where(
            np.stack([measure.norms(z - other) for z, other in zip(imagined.real, others, strict=True)]), counts
        )

    error, unchanged = mean_distance(imagined.latents), mean_distance(np.broadcast_to(starts, imagined.real.shape))
    flat = subject.answers.latents.reshape(-1, *starts.shape[1:])
    pairs = generator.integers(len(flat), size=(2, N_POINTS))
    spread = np.full(n_steps, measure.norms(flat[pairs[0]] - flat[pairs[1]]).mean())
    steps = np.arange(1, n_steps + 1)
    series = {"imagined": error, '"nothing changes"': unchanged, "two states at random": spread}
    found = (
        f"After one step the imagined latent state is {error[0]:.3g} from the real one, on average over {N_STARTS} "
        f"starts. It is nearer than the state that it began from (“nothing changes”) {at_steps(error < unchanged)}, "
        f"and nearer than a played state at random {at_steps(error < spread)}. Where it is neither, the model is "
        "worth nothing."
    )
    figure = pictures.lines(steps, series, "imagined steps", "distance from the real latent state")
    figure.axes[0].set_ylim(bottom=0)
    picture = Picture(
        "open_loop",
        "Error of imagined latent states over imagined steps",
        figure,
        "Good: the thick line begins near 0 and stays well below both others for as many steps as one wants to "
        "imagine. Where it meets one of them, the model is worth nothing from there on.",
    )
    numbers = {name: {"step": steps, "distance": values} for name, values in series.items()}
    numbers["imagined"]["count"] = counts.sum(axis=1)
    return Section("open_loop", "How far imagination carries", found, [picture], numbers)


def at_steps(which: np.ndarray) -> str:
    """
    :param which: of steps 1 ... K
    :return: these steps, in words
    """
    if which.all():
        return f"at all {len(which)} steps"
    spans = [str(first) if first == last else f"{first}–{last}" for first, last in measure.spans(which)]
    return f"at step{'s' if which.sum() > 1 else ''} {', '.join(spans)}" if spans else "at no step"


def returns(subject: Subject, generator: np.random.Generator) -> Section:
    """
    :param subject: what the report is about
    :param generator: draws the states
    :return: imagined against real discounted returns
    """
    name, title = "returns", "Returns"
    played, answers = subject.played, subject.answers
    real, weights = measure.discounted_returns(
        played.rewards, played.terminated, played.truncated, answers.next_values, subject.gamma
    )
    known = np.flatnonzero(weights.ravel() <= CRITICS_WEIGHT)
    if len(known) < 2:
        return Section(
            name,
            title,
            f"No real return is known: with γ = {subject.gamma:g} every state is too near the end of what was played.",
        )
    chosen = generator.permutation(known)[:N_RETURNS]
    latents = answers.latents.reshape(-1, *answers.latents.shape[2:])[chosen]
    program = jax.jit(
        partial(
            measure.imagined_returns, subject.networks, reward_scale=subject.reward_scale, gamma=subject.gamma,
            horizon=HORIZON, n_dreams=N_DREAMS,
        )
    )  # fmt: skip
    series = {
        "imagined": np.asarray(program(subject.parameters, latents, jax.random.PRNGKey(2))),
        CRITIC: answers.values.ravel()[chosen],
    }
    real = real.ravel()[chosen]
    numbers = {
        label: {
            "real": real, "predicted": values, "mean error": np.abs(values - real).mean(keepdims=True),
            "correlation": np.array([measure.correlation(real, values)]),
        }
        for label, values in series.items()
    }  # fmt: skip
    agreement = {
        label: f"a correlation of {of['correlation'][0]:.2f} with the real discounted return, and is "
        f"{of['mean error'][0]:.3g} from it on average"
        for label, of in numbers.items()
    }
    found = (
        f"From {len(chosen)} states, the mean of {N_DREAMS} dreams of {HORIZON} steps, with the critic's value of "
        f"where they lead, has {agreement['imagined']}; the critic's value alone has {agreement[CRITIC]}. Real returns "
        "are those of the episode that was played, one sample each. Where a time limit, or the end of what was played, "
        f"cuts it, the critic says what follows; states where that would have more than {CRITICS_WEIGHT:.0%} of the "
        "weight are left out."
    )
    if not subject.networks.has_ends:
        found += " This model's dreams know of no ends."
    picture = Picture(
        "returns",
        "Imagined against real discounted returns",
        pictures.against_real(real, series, "real discounted return", "imagined, or the critic's"),
        "Good: points gather along the grey line, those imagined as closely as the critic's. Above it, the model "
        "promises more than there is.",
    )
    return Section(name, title, found, [picture], numbers)


def dreams(subject: Subject, imagined: Imagined) -> Section:
    """
    :param subject: what the report is about
    :param imagined: imagined steps
    :return: real observations above those played whose latent states lie nearest to the imagined ones
    """
    played, answers = subject.played, subject.answers
    flat = answers.next_latents.reshape(-1, *answers.next_latents.shape[2:])
    points = flat.reshape(len(flat), -1)
    lengths = imagined.counts.sum(axis=0)
    longest = np.flatnonzero(lengths == lengths.max())
    # the outermost, of different environments if there are several
    shown = np.unique(longest[imagined.columns[longest].argsort()][[0, -1]])
    steps = np.arange(1, lengths.max() + 1)
    if subject.draw is not None:
        steps = np.intersect1d(steps, SHOWN_STEPS)
    seen = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), played.next_observations)

    pairs: list[tuple[Any, Any]] = []
    numbers = {}
    for number, start in enumerate(shown, 1):
        real = (imagined.times[start] + steps - 1) * played.rewards.shape[1] + imagined.columns[start]
        latents = imagined.latents[steps - 1, start].reshape(len(steps), -1)
        closest = measure.nearest(latents, points)
        pairs.append(tuple(jax.tree.map(lambda array, at=at: array[at], seen) for at in (real, closest)))
        numbers[f"dream {number}"] = {
            "step": steps, "real transition": real, "nearest transition": closest,
            "distance": measure.norms(points[closest] - latents),
        }  # fmt: skip
    found = (
        "The actions that were played, followed in the latent model from one real state, without another look at the "
        "environment. The model has no decoder: it shows the played observation whose latent state lies nearest to the "
        "imagined one."
    )
    if subject.draw is None:
        drawn, shown_numbers = dreams_of_vectors(steps, pairs)
        return Section("dreams", "What it dreams", found, drawn, {k: numbers[k] | shown_numbers[k] for k in numbers})
    rows = [
        (label, subject.draw(some)) for pair in pairs for label, some in zip(("real", "imagined"), pair, strict=True)
    ]
    picture = Picture(
        "dreams",
        "Real frames above those nearest to the imagined ones",
        pictures.frames([f"step {k}" for k in steps], rows),
        "Good: each lower row shows what the row above it shows, in the first steps the very same frame, and later at "
        "least one that could follow.",
    )
    return Section("dreams", "What it dreams", found, [picture], numbers)


def dreams_of_vectors(steps: np.ndarray, pairs: list[tuple[Any, Any]]) -> tuple[list[Picture], Numbers]:
    """
    :param steps: imagined, shape (K,)
    :param pairs: of each dream, observations real and nearest to the imagined ones, arrays of shape (K, ...)
    :return: pictures of their first numbers, and these
    """
    drawn, numbers = [], {}
    for number, pair in enumerate(pairs, 1):
        real, closest = (measure.vectors(observations)[:, :MOST_NUMBERS] for observations in pair)
        names = [f"number {i}" for i in range(real.shape[1])]
        numbers[f"dream {number}"] = {
            f"{which} {name}": column
            for which, some in (("real", real), ("nearest", closest))
            for name, column in zip(names, some.T, strict=True)
        }
        drawn.append(
            Picture(
                f"dream_{number}",
                f"Dream {number}: observations real and imagined",
                pictures.real_and_dreamt(steps, real, closest, names),
                "Good: the dashed lines stay on the solid ones, and where they leave them, they still move as the "
                "environment does.",
            )
        )
    return drawn, numbers


# --- the latent space -------------------------------------------------------------------------------


def latent_space(subject: Subject, generator: np.random.Generator) -> Section:
    """
    :param subject: what the report is about
    :param generator: draws the states
    :return: the latent space in two dimensions
    """
    flat = subject.answers.latents.reshape(subject.played.rewards.size, -1)
    chosen = np.sort(generator.permutation(len(flat))[:N_POINTS])
    positions, shares = measure.principal_axes(flat[chosen])
    values, steps = subject.answers.values.ravel()[chosen], subject.played.steps.ravel()[chosen]
    found = (
        f"The {flat.shape[1]:,} numbers of a latent state, for {len(chosen):,} played states, on their two principal "
        f"axes, which hold {shares.sum():.0%} of the variance: what these pictures do not show is the rest."
    )
    by_value = Picture(
        "latent_space_value",
        "The latent space, coloured by value",
        pictures.coloured_points(positions, values, shares, "the critic's value"),
        "Good: neighbours have similar colours, and states of different worth lie apart.",
    )
    by_time = Picture(
        "latent_space_time",
        "The latent space, coloured by time",
        pictures.coloured_points(positions, steps, shares, "step of the episode"),
        "Good: an episode is a path, along which colours change little by little; a cloud in which all times are mixed "
        "is good only where episodes come back to where they were.",
    )
    numbers = {
        "states": {"first axis": positions[:, 0], "second axis": positions[:, 1], "value": values, "step": steps},
        "axes": {"share of variance": shares},
    }
    return Section("latent_space", "The latent space", found, [by_value, by_time], numbers)


def lipschitz(subject: Subject, generator: np.random.Generator) -> Section:
    """
    :param subject: what the report is about
    :param generator: draws the states
    :return: Lipschitz constants: what is proven, and the steepest slopes found
    """
    answers, played = subject.answers, subject.played
    chosen = generator.permutation(played.rewards.size)[:N_SLOPES]
    latents = answers.latents.reshape(played.rewards.size, *answers.latents.shape[2:])[chosen]
    actions = played.actions.reshape(played.rewards.size, *played.actions.shape[2:])[chosen]
    found = jax.jit(partial(measure.slopes, subject.networks, n_iterations=N_ITERATIONS))(
        subject.parameters, latents, actions, jax.random.PRNGKey(3)
    )
    bounds = agent.lipschitz_bounds(subject.networks, subject.parameters)
    scale = subject.reward_scale
    rows = {
        "reward": (scale * float(bounds.reward.latent), scale * np.asarray(found.reward)),
        "transition": (float(bounds.transition.latent), np.asarray(found.transition)),
    }
    if subject.networks.has_ends:
        rows["termination"] = (float(bounds.termination), np.asarray(found.termination))
    table = [("", "proven bound", "steepest slope found", "median slope")]
    table += [
        (
            name,
            f"{bound:.3g}" if np.isfinite(bound) else "∞: nothing is proven",
            f"{slopes.max():.3g}",
            f"{np.median(slopes):.3g}",
        )
        for name, (bound, slopes) in rows.items()
    ]
    words = (
        f"How much the model's answers change per unit of the latent state, for a given action: at {len(chosen)} "
        "played states, by gradients and, for transitions, by the power method on the Jacobian with the noise held "
        "fast. Good: bounds are finite, and the slopes found are not far below them; a slope above its bound would be "
        "an error of the software. A certificate needs a finite K_R and K_P < 1/γ, for which the policy's own constant "
        "counts, too."
    )
    if subject.networks.world_model is not None and subject.networks.world_model.density.one_hot is not None:
        words += " Latent states are one-hot: the slopes of transitions are those of their probabilities."
    picture = Picture(
        "slopes",
        "Slopes found",
        pictures.histograms(
            {name: slopes for name, (_, slopes) in rows.items()}, {name: bound for name, (bound, _) in rows.items()}
        ),
        "Good: all slopes lie to the left of the dashed line, their bound, where there is one; a model whose slopes "
        "are near 0 everywhere tells states badly apart.",
    )
    numbers = {name: {"bound": np.array([bound]), "slope": slopes} for name, (bound, slopes) in rows.items()}
    return Section("lipschitz", "Lipschitz constants", words, [picture], numbers, table)


# --- training ---------------------------------------------------------------------------------------


def certified(path: Path | None, num_timesteps: int, gamma: float) -> Section:
    """
    :param path: of a file of certificates; ``None``: there is none
    :param num_timesteps: steps that the model has learned from
    :param gamma: γ
    :return: certificates over training
    """
    name, title = "certificates", "Certificates over training"
    numbers, failed = ({}, {}) if path is None else certificates.read(path, num_timesteps)
    if not numbers:
        return Section(
            name,
            title,
            "There is no file of them beside the model, in the same folder: "
            'learn(..., callback=SPICertificateCallback("certificates.csv")) writes one.',
        )
    assert path is not None
    steps = numbers["timesteps"]
    n_failed = np.any(list(failed.values()), axis=0).sum()
    often = [f"{condition} in {marks.sum():,}" for condition, marks in failed.items() if marks.any()]
    found = f"Of {len(steps):,} updates in {path.name}, {len(steps) - n_failed:,} were certified"
    found += f"; what failed: {', '.join(often)}." if often else "."
    ratios = {
        label: numbers[column]
        for label, beginning in (("greatest", "importance_ratio_sup"), ("least", "importance_ratio_inf"))
        for column in numbers
        if column.startswith(beginning)
    }
    limit = {"1/γ": np.full(len(steps), 1 / gamma)} if gamma > 0 else {}
    drawn = [
        Picture(
            "certificates_ratio",
            "Importance ratios over training",
            pictures.lines(steps, ratios | limit, "steps", "importance ratio D_IR"),
            "Good: the thick line stays below 1/γ: only then is anything promised.",
        ),
        Picture(
            "certificates_conditions",
            "Conditions that failed, over training",
            pictures.strip(steps, failed, "steps"),
            "Good: no orange marks: an update is certified where no condition failed.",
        ),
    ]
    zetas = {"ζ": numbers["zeta"], "with the paper's factors": numbers["zeta_paper"]}
    if np.isfinite(numbers["zeta"]).any():
        finite = {key: np.where(np.isfinite(values) & (values > 0), values, np.nan) for key, values in zetas.items()}
        drawn.insert(
            0,
            Picture(
                "certificates_zeta",
                "ζ over training",
                pictures.lines(steps, finite, "steps", "ζ, in units of return", log=True),
                "Good: ζ is small beside the returns, and falls: the real improvement is at most so much less than the "
                "latent one. Gaps: it is infinite.",
            ),
        )
    else:
        found += " ζ was infinite throughout."
    failures = {f"failed: {condition}": {"failed": marks.astype(int)} for condition, marks in failed.items()}
    return Section(name, title, found, drawn, {"certificates": numbers} | failures)
