"""The sections of the report: what there is of a suite's runs, in words, tables and pictures."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sbx_deepspi.report.page import Numbers, Picture, Section
from sbx_deepspi.suite.definition import Suite
from sbx_deepspi.suite.folder import DONE, FAILED, RUNNING
from sbx_deepspi.suite.report import pictures, scores, statistics, words
from sbx_deepspi.suite.report.pictures import Line, Panel
from sbx_deepspi.suite.report.scores import Compared, Result
from sbx_deepspi.suite.report.statistics import Estimate

N_THRESHOLDS = 101
FEW_SEEDS = 5
BASELINE = "ppo"
PAIRS = (("deepspi", BASELINE), ("deepspi", "deepmdp"), ("dreamspi", "deepspi"))
"""That are compared first; then all other algorithms with the baseline."""
LOSSES = {"transition loss L_P": "world_model/transition_loss", "reward loss L_R": "world_model/reward_loss"}
CERTIFIED, ZETA = "spi/certified", "spi/zeta"
NOTHING = "No run is done yet."
NOT_SCORED = "done, but without a score in the last tenth of its steps"


@dataclass(frozen=True)
class Subject:
    """
    What the report is about.

    :param suite: of the runs
    :param results: of all runs that were asked for
    """

    suite: Suite
    results: Sequence[Result]

    @cached_property
    def compared(self) -> Compared:
        """
        :return: which algorithms, games and seeds are compared over games
        """
        return scores.compare(self.results)

    @cached_property
    def matrices(self) -> dict[str, np.ndarray]:
        """
        :return: by the name of an algorithm: normalised scores that are compared, shape (seeds, games)
        """
        return {name: self.compared.matrix(name) for name in self.algorithms if name in self.compared.runs}

    @cached_property
    def aggregates(self) -> dict[str, Estimate]:
        """
        :return: by the name of an algorithm: a number for each of ``AGGREGATES``
        """
        return {name: statistics.aggregates(matrix) for name, matrix in self.matrices.items()}

    @cached_property
    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """
        :return: P(X > Y) by X and Y
        """
        return {
            (x, y): statistics.improvement(self.matrices[x], self.matrices[y])[0] for x, y in pairs(list(self.matrices))
        }

    @cached_property
    def algorithms(self) -> list[str]:
        """
        :return: names of those with runs, in the suite's order
        """
        asked = {run.algorithm.name for run in self.results}
        return [name for name in self.suite.algorithms if name in asked]

    @cached_property
    def games(self) -> list[str]:
        """
        :return: names of those with runs, in the suite's order
        """
        asked = {run.game.name for run in self.results}
        return [name for name in self.suite.games if name in asked]

    @cached_property
    def styles(self) -> dict[str, pictures.Style]:
        """
        :return: how algorithms look
        """
        return pictures.styles(self.suite.algorithms)

    @cached_property
    def steps(self) -> np.ndarray:
        """
        :return: of curves
        """
        return scores.grid(self.suite.n_timesteps)

    def runs(self, algorithm: str, game: str) -> list[Result]:
        """
        :param algorithm: by name
        :param game: by name
        :return: all runs of the two
        """
        return [run for run in self.results if (run.algorithm.name, run.game.name) == (algorithm, game)]

    def done(self, algorithm: str, game: str) -> list[Result]:
        """
        :param algorithm: by name
        :param game: by name
        :return: the runs of the two that are done
        """
        return [run for run in self.runs(algorithm, game) if run.state == DONE]


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """
    :param names: of algorithms that are compared
    :return: which with which: each with PPO, or with the first of them where there is no PPO, and a few more
    """
    baseline = BASELINE if BASELINE in names else next(iter(names), None)
    first = [pair for pair in PAIRS if set(pair) <= set(names)]
    known = {frozenset(pair) for pair in first}
    others = [(name, baseline) for name in names if baseline is not None and name != baseline]
    return first + [pair for pair in others if frozenset(pair) not in known]


def findings(subject: Subject) -> list[str]:
    """
    :param subject: what the report is about
    :return: sentences at the top: what is missing, and which algorithm is better
    """
    n_done = sum(run.state == DONE for run in subject.results)
    found = [f"{n_done:,} of {words.count(len(subject.results), 'run')} that were asked for are done."]
    if subject.matrices:
        found.append(what_is_compared(subject))
    if different := made_differently(subject):
        found.append(different)
    return found + [
        words.compared(x, y, (subject.aggregates[x][0], subject.aggregates[y][0]), improvement)
        for (x, y), improvement in subject.improvements.items()
    ]


def made_differently(subject: Subject) -> str:
    """
    :param subject: what the report is about
    :return: which commits and packages made the runs that are done, where these are several; else nothing
    """
    done = [run.made_by for run in subject.results if run.state == DONE]
    several = []
    for what in sorted({what for made_by in done for what in made_by}):
        counts = Counter(made_by[what] for made_by in done if what in made_by)
        if len(counts) > 1:
            of_each = ", ".join(f"{shortened(version)} ({n:,})" for version, n in counts.most_common())
            several.append(f"{what} {of_each}")
    if not several:
        return ""
    return f"Not all runs were made by the same code, in brackets how many were by which: {'; '.join(several)}."


def shortened(version: str) -> str:
    """
    :param version: of a package, or a git commit, with "+" where files were changed since
    :return: the same, for people
    """
    return re.sub(r"^([0-9a-f]{7})[0-9a-f]{33}", r"\1", version)


def of_what(suite: Suite) -> str:
    """
    :param suite: of the runs
    :return: what a score is the mean of
    """
    return "return of the episodes that ended" if suite.score == scores.RETURN else suite.score


def what_is_compared(subject: Subject) -> str:
    """
    :param subject: what the report is about; something is compared
    :return: which games and runs numbers over games are of, and what is left out
    """
    sizes = {name: len(matrix) for name, matrix in subject.matrices.items()}
    fewest = min(sizes.values())
    if fewest == max(sizes.values()):
        seeds = f"{words.count(fewest, 'run')} of each algorithm"
    else:
        seeds = words.listed([f"{words.count(n, 'run')} of {name}" for name, n in sizes.items()])
    n_games = len(subject.compared.games)
    text = (
        f"Numbers over games are of {words.count(n_games, 'game')}, with {seeds} in {'each' if n_games > 1 else 'it'}."
    )
    if left := left_out(subject):
        text += f" Left out of these numbers, not of those of single games: {'; '.join(left)}."
    if fewest == 1:
        text += " One run of a game does not say how much is chance: where there is no more, there is no interval."
    elif fewest <= FEW_SEEDS:
        text += (
            f" So few runs make bootstrap intervals too narrow: with {fewest}, those of a mean by about "
            f"{statistics.too_narrow(fewest):.0%}."
        )
    return text


def left_out(subject: Subject) -> list[str]:
    """
    :param subject: what the report is about
    :return: algorithms, games and runs that are done, but not compared over games
    """
    compared = subject.compared
    left = [
        f"{name}, which is not done in all of these games" for name in subject.algorithms if name not in compared.runs
    ]
    if games := [name for name in subject.games if name not in compared.games]:
        left.append(f"{words.listed(games)}, where too few runs are done")
    more = [f"{n:,} of {name}" for name, n in surplus(subject).items() if n]
    if more:
        left.append(f"runs of games where more are done than elsewhere ({', '.join(more)})")
    return left


def surplus(subject: Subject) -> dict[str, int]:
    """
    :param subject: what the report is about
    :return: by the name of an algorithm that is compared: runs in the games compared that are done, and left out
    """
    compared = subject.compared
    return {
        name: sum(run.is_scored for game in compared.games for run in subject.done(name, game))
        - sum(map(len, of_games))
        for name, of_games in compared.runs.items()
    }


def missing(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: runs that were asked for and are not there
    """
    rows: list[tuple[str, ...]] = [("algorithm", "game", "seeds", "state", "steps so far", "why")]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for run in subject.results:
        if not run.is_scored:
            why = run.error if run.state in (FAILED, scores.DAMAGED) else NOT_SCORED if run.state == DONE else ""
            groups.setdefault((run.algorithm.name, run.game.name, run.state, why), []).append(run)
    for (algorithm, game, state, why), runs in groups.items():
        most = max(run.timesteps for run in runs)
        so_far = f"{'at most ' if len(runs) > 1 and most else ''}{most:,}"
        rows.append((algorithm, game, words.of_seeds([run.seed for run in runs]), state, so_far, why))
    n_asked, n_done = len(subject.results), sum(run.state == DONE for run in subject.results)
    numbers: Numbers = {"all": {"runs asked for": np.array([n_asked]), "runs done": np.array([n_done])}}
    if not groups:
        found = f"Nothing: all {n_asked:,} runs that were asked for are done."
        return Section("missing", "What is missing", found, numbers=numbers)
    counts = Counter(run.state if run.state != DONE else NOT_SCORED for run in subject.results if not run.is_scored)
    found = f"Of {words.count(len(subject.results), 'run')} that were asked for, "
    found += words.listed([f"{n:,} {in_words(state, n)}" for state, n in counts.items()]) + "."
    if counts[RUNNING]:
        found += " A run also counts as running where its process was stopped."
    found += (
        " A run that is not done has no part in scores, losses and certificates; its learning curve is drawn thin, as "
        "far as it got."
    )
    numbers |= {state: {"runs": np.array([n])} for state, n in counts.items()}
    return Section("missing", "What is missing", found, numbers=numbers, table=rows)


def in_words(state: str, n: int) -> str:
    """
    :param state: of runs
    :param n: how many
    :return: what they are, or have done
    """
    return state if state == FAILED else f"{'is' if n == 1 else 'are'} {state}"


def aggregates(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: IQM, median, mean and optimality gap of normalised scores
    """
    name, title = "aggregates", "All games together"
    if not subject.matrices:
        return Section(name, title, NOTHING)
    metrics = list(statistics.AGGREGATES)
    found = (
        f"A run's score is the mean {of_what(subject.suite)} in the last tenth of its steps, normalised game by "
        f"game: 0 is a game's low score and 1 its high one ({subject.suite.scores}). IQM is the mean of the middle "
        "half of all runs, which a few very good or bad ones do not move; the median is over games; the optimality gap "
        "is how far runs stay below 1 on average, and lower is better. In brackets: 95 % intervals, by the bootstrap "
        "stratified by game. Which runs these numbers are of is said at the top."
    )
    rows = [("algorithm", *metrics, "runs of a game")]
    numbers: Numbers = {}
    for algorithm, estimates in subject.aggregates.items():
        n_seeds = len(subject.matrices[algorithm])
        cells = [words.with_interval(estimates[i]) for i in range(len(metrics))]
        rows.append((algorithm, *cells, str(n_seeds)))
        numbers[algorithm] = {
            "runs of a game": np.array([n_seeds]), "games": np.array([len(subject.compared.games)]),
            "runs left out in these games": np.array([surplus(subject)[algorithm]]),
        }  # fmt: skip
        if 1 < n_seeds <= FEW_SEEDS:
            numbers[algorithm]["share by which intervals are too narrow"] = np.array([statistics.too_narrow(n_seeds)])
        for i, metric in enumerate(metrics):
            numbers[algorithm] |= of_estimate(metric, estimates[i])
    shown = {
        metric: {algorithm: estimates[i] for algorithm, estimates in subject.aggregates.items()}
        for i, metric in enumerate(metrics)
    }
    picture = Picture(
        "aggregates",
        "IQM, median, mean and optimality gap of each algorithm",
        pictures.intervals(shown, {algorithm: subject.styles[algorithm].color for algorithm in subject.matrices}),
        "Good: far to the right, and for the optimality gap far to the left. Bars are 95 % intervals.",
    )
    return Section(name, title, found, [picture], numbers, rows)


def of_estimate(quantity: str, estimate: Estimate) -> dict[str, np.ndarray]:
    """
    :param quantity: its name
    :param estimate: of any shape
    :return: for the file of numbers: the estimate, and the ends of its interval if it has one
    """
    named = {quantity: estimate.value, f"{quantity}, low": estimate.low, f"{quantity}, high": estimate.high}
    return {name: np.atleast_1d(some) for name, some in named.items() if estimate.has_interval or name == quantity}


def line_of(name: str, x: np.ndarray, estimate: Estimate) -> Line:
    """
    :param name: of an algorithm
    :param x: shape (B,)
    :param estimate: of shape (B,)
    :return: a line, with a band if there are intervals
    """
    band = (estimate.low, estimate.high) if estimate.has_interval else (None, None)
    return Line(name, x, estimate.value, *band)


def profiles(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: performance profiles
    """
    name, title = "profiles", "Performance profiles"
    if not subject.matrices:
        return Section(name, title, NOTHING)
    everything = np.concatenate([matrix.ravel() for matrix in subject.matrices.values()])
    # few runs may be many times as good as the high score: they must not press all others together
    ends = min(0.0, np.quantile(everything, 0.05)), max(1.0, np.quantile(everything, 0.95))
    thresholds = np.linspace(*ends, N_THRESHOLDS)
    numbers: Numbers = {}
    lines = []
    for algorithm, matrix in subject.matrices.items():
        estimate = statistics.profile(matrix, thresholds)
        lines.append(line_of(algorithm, thresholds, estimate))
        numbers[algorithm] = {"threshold": thresholds} | of_estimate("share of runs above it", estimate)
    beyond = float((everything > ends[1]).mean())
    found = (
        "The share of runs, of all games together, with a normalised score above τ. Where one curve lies above another "
        "for all τ, its algorithm is better throughout; where they cross, it depends on what counts as good. The curve "
        "is at one half where τ is the median run. Bands are 95 % intervals."
    )
    if beyond > 0:
        found += f" {beyond:.0%} of all runs lie to the right of what is shown."
        numbers["all"] = {"share of runs beyond what is shown": np.array([beyond])}
    picture = Picture(
        "profiles",
        "Share of runs with a score above each threshold",
        pictures.panels([Panel("share of runs with score > τ", lines)], "normalised score τ", subject.styles),
        "Good: high, and far to the right.",
    )
    return Section(name, title, found, [picture], numbers)


def improvement(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: probabilities of improvement, pair by pair
    """
    name, title = "improvement", "Probability of improvement"
    if not subject.improvements:
        return Section(name, title, NOTHING if not subject.matrices else "There are no two algorithms to compare.")
    found = (
        "P(X > Y): how probably a run of X has a higher score than a run of Y in the same game, drawn at random; the "
        "mean over games, with ties as one half. It says how often X is better, not by how much. 0.5 means that none "
        "is better. In brackets: 95 % intervals, each for itself: of many pairs, some differ by chance."
    )
    rows = [("X > Y", "P(X > Y)", "where 0.5 lies")]
    numbers: Numbers = {}
    named = {f"{x} > {y}": estimate for (x, y), estimate in subject.improvements.items()}
    for pair, estimate in named.items():
        where = words.NONE
        if estimate.has_interval:
            side = "below" if estimate.low > 0.5 else "above" if estimate.high < 0.5 else "in"
            where = f"{side} the interval"
        rows.append((pair, words.with_interval(estimate), where))
        numbers[pair] = of_estimate("probability of improvement", estimate)
    colours = {f"{x} > {y}": subject.styles[x].color for x, y in subject.improvements}
    picture = Picture(
        "improvement",
        "Probability of improvement of each pair",
        pictures.intervals({"P(X > Y)": named}, colours, at=0.5),
        "Good for X: the whole bar, its 95 % interval, lies to the right of the dashed line.",
    )
    return Section(name, title, found, [picture], numbers, rows)


def efficiency(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: IQM over steps
    """
    name, title = "efficiency", "Sample efficiency"
    if not subject.matrices:
        return Section(name, title, NOTHING)
    numbers: Numbers = {}
    lines = []
    for algorithm in subject.matrices:
        curves = subject.compared.curves(algorithm, subject.suite.score, subject.steps)
        known = np.isfinite(curves).all(axis=(0, 1))
        steps, estimate = subject.steps[known], statistics.efficiency(curves[..., known])
        lines.append(line_of(algorithm, steps, estimate))
        numbers[algorithm] = {"step": steps} | of_estimate("IQM", estimate)
    found = (
        "The IQM of normalised scores during training, over the same games and seeds as above: each point is the mean "
        f"{of_what(subject.suite)} in 1/{scores.N_BINS} of the steps before it. Bands are 95 % intervals, each of its "
        "own point. The last point is not the final score: that is of a tenth of the steps."
    )
    picture = Picture(
        "efficiency",
        "IQM over steps",
        pictures.panels([Panel("IQM of normalised scores", lines)], "steps", subject.styles),
        "Good: up early, and high at the end.",
    )
    return Section(name, title, found, [picture], numbers)


def games(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: final scores and learning curves, game by game
    """
    rows: list[tuple[str, ...]] = [("game", "0 is", "1 is", *subject.algorithms)]
    numbers: Numbers = {}
    drawn = []
    n_partial = 0
    for game, file in zip(subject.games, file_names("curve", subject.games), strict=True):
        cells, lines = [], []
        for algorithm in subject.algorithms:
            final = np.array([run.score for run in subject.done(algorithm, game) if run.is_scored])
            cells.append(mean_and_deviation(final))
            series = f"{algorithm} on {game}"
            if len(final):
                numbers[series] = {"score": final, "mean score": final.mean(keepdims=True)}
            if len(final) > 1:
                numbers[series]["standard deviation"] = final.std(ddof=1, keepdims=True)
            of_algorithm, n_of_partial, of_curves = lines_of(subject, algorithm, game, subject.suite.score)
            lines += of_algorithm
            n_partial += n_of_partial
            if of_curves:
                numbers[series] = numbers.get(series, {}) | of_curves
        of_game = subject.suite.games[game]
        numbers[game] = {"score that is 0": np.array([of_game.low]), "score that is 1": np.array([of_game.high])}
        rows.append((game, words.number(of_game.low), words.number(of_game.high), *cells))
        if lines:
            figure = pictures.panels([Panel(subject.suite.score, lines)], "steps", subject.styles, game)
            drawn.append(Picture(file, f"Learning curves in {game}", figure))
    found = (
        "Final scores as the game gives them: mean ± standard deviation over runs, and in parentheses how many are "
        "done. Below, learning curves: the mean over runs that are done, and a band from their lower to their upper "
        "quartile."
    )
    if n_partial:
        found += (
            f" {words.count(n_partial, 'run')} that {'is' if n_partial == 1 else 'are'} not done "
            "have no part in means: thin lines show how far they got."
        )
    if not drawn:
        found += f" {NOTHING}"
    return Section("games", "Game by game", found, drawn, numbers, rows)


def mean_and_deviation(numbers: np.ndarray) -> str:
    """
    :param numbers: of runs
    :return: mean ± standard deviation (how many)
    """
    if not len(numbers):
        return words.NONE
    deviation = f" ± {words.number(numbers.std(ddof=1))}" if len(numbers) > 1 else ""
    return f"{words.number(numbers.mean())}{deviation} ({len(numbers)})"


def lines_of(subject: Subject, algorithm: str, game: str, column: str) -> tuple[list[Line], int, dict[str, np.ndarray]]:
    """
    :param subject: what the report is about
    :param algorithm: by name
    :param game: by name
    :param column: of progress
    :return: a line of runs that are done and thin ones of those that are not, how many these are, and the numbers
    """
    runs = subject.runs(algorithm, game)
    curves = [(run, scores.curve(run.rows, column, subject.steps)) for run in runs]
    whole = [curve for run, curve in curves if run.state == DONE and np.isfinite(curve).any()]
    begun = [(run, curve) for run, curve in curves if run.state != DONE and np.isfinite(curve).any()]
    lines, numbers = [], {}
    if whole:
        band = scores.mean_and_quartiles(whole)
        quartiles = (band["lower quartile"], band["upper quartile"]) if len(whole) > 1 else (None, None)
        lines.append(Line(algorithm, subject.steps, band["mean"], *quartiles))
        shown = band if len(whole) > 1 else {"mean": band["mean"]}
        numbers = {"step": subject.steps} | {f"{column}, {key}": values for key, values in shown.items()}
    for run, curve in begun:
        lines.append(Line(algorithm, subject.steps, curve, partial=True))
        numbers |= {"step": subject.steps, f"{column} of seed {run.seed}, not done": curve}
    return lines, len(begun), numbers


def file_names(kind: str, names: Sequence[str]) -> list[str]:
    """
    :param kind: of pictures
    :param names: of games
    :return: a name of a file for each, different from all others on any file system
    """
    files: list[str] = []
    taken: set[str] = set()
    for name in names:
        file = base = f"{kind}_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}"
        tries = 1
        while file.lower() in taken:
            tries += 1
            file = f"{base}_{tries}"
        taken.add(file.lower())
        files.append(file)
    return files


def world_model(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: losses of world models, by algorithm and game
    """
    name, title = "world_model", "World models"
    algorithms = [
        algorithm for algorithm in subject.algorithms
        if any(column in run.rows for run in subject.results if run.algorithm.name == algorithm
               for column in LOSSES.values())
    ]  # fmt: skip
    if not algorithms:
        return Section(name, title, "No run with a world model has learned yet.")
    has_ratio = {"deepspi", "deepmdp"} <= set(algorithms)
    rows: list[tuple[str, ...]] = [("game", "loss", *algorithms, *["deepspi / deepmdp"] * has_ratio)]
    numbers: Numbers = {}
    drawn = []
    ratios: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for game, file in zip(subject.games, file_names("losses", subject.games), strict=True):
        shown = []
        for loss, column in LOSSES.items():
            means, lines = {}, []
            for algorithm in algorithms:
                series = f"{algorithm} on {game}"
                of_runs = np.array([scores.last_mean(run.rows, column) for run in subject.done(algorithm, game)])
                of_runs = of_runs[np.isfinite(of_runs)]
                means[algorithm] = of_runs.mean() if len(of_runs) else np.nan
                of_algorithm, _, of_curves = lines_of(subject, algorithm, game, column)
                lines += of_algorithm
                of_last = {f"{loss}, last tenth": np.array([means[algorithm]])} if len(of_runs) else {}
                if of_curves or of_last:
                    numbers[series] = numbers.get(series, {}) | of_curves | of_last
            cells = [words.number(means[algorithm]) for algorithm in algorithms]
            if has_ratio:
                ratio = means["deepspi"] / means["deepmdp"] if means["deepmdp"] else np.nan
                cells.append(words.number(ratio))
                if np.isfinite(ratio):
                    ratios[loss].append(ratio)
                    numbers.setdefault(f"deepspi / deepmdp on {game}", {})[loss] = np.array([ratio])
            if lines:
                shown.append(Panel(loss, lines))
            if np.isfinite(list(means.values())).any():
                rows.append((game, loss, *cells))
        if shown:
            figure = pictures.panels(shown, "steps", subject.styles, game)
            drawn.append(Picture(file, f"Losses of world models in {game}", figure))
    found = (
        "Losses of the last tenth of the steps, means over runs that are done; below, over all steps, with bands from "
        "the lower to the upper quartile of runs. Each algorithm's losses are of its own latent space and of the data "
        "that its own policy collects: a lower one is not yet a better model."
    )
    for loss, of_games in ratios.items():
        if of_games:
            median, lower = float(np.median(of_games)), sum(ratio < 1 for ratio in of_games)
            found += (
                f" deepspi's {loss} is lower than deepmdp's in {lower} of {words.count(len(of_games), 'game')}, and "
                f"{words.number(median)} of it in the median."
            )
            numbers.setdefault("deepspi / deepmdp", {})[f"{loss}, median"] = np.array([median])
            numbers["deepspi / deepmdp"][f"{loss}, games where it is lower"] = np.array([lower])
    return Section(name, title, found, drawn, numbers, rows if len(rows) > 1 else ())


def certificates(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: how often improvement was certified, and what prevented it
    """
    name, title = "certificates", "Certificates"
    rows: list[tuple[str, ...]] = [("algorithm", "game", "runs", "updates", "certified", "median ζ at the end",
                                    "reasons")]  # fmt: skip
    numbers: Numbers = {}
    n_updates = n_certified = 0
    for algorithm in subject.algorithms:
        for game in subject.games:
            runs = [
                run
                for run in subject.done(algorithm, game)
                if CERTIFIED in run.rows and run.rows[CERTIFIED].notna().any()
            ]
            if not runs:
                continue
            certified = np.concatenate([run.rows[CERTIFIED].dropna().to_numpy() for run in runs])
            zetas = [
                float(scores.in_last_tenth(run.rows)[ZETA].dropna().median()) if ZETA in run.rows else np.nan
                for run in runs
            ]
            zeta = float(np.median([value for value in zetas if not np.isnan(value)] or [np.nan]))
            counts = Counter(
                why for run in runs if scores.VERDICT in run.rows
                for verdict in run.rows[scores.VERDICT].dropna() for why in words.reasons(str(verdict))
            )  # fmt: skip
            often = "; ".join(f"{why} ({n:,} times)" for why, n in counts.most_common())
            n_updates += len(certified)
            n_certified += int(certified.sum())
            rows.append((algorithm, game, str(len(runs)), f"{len(certified):,}", f"{certified.mean():.1%}",
                         words.number(zeta), often or words.NONE))  # fmt: skip
            numbers[f"{algorithm} on {game}"] = {
                "runs": np.array([len(runs)]), "updates": np.array([len(certified)]),
                "share certified": np.array([certified.mean()]), "median ζ at the end": np.array([zeta]),
            } | {f"failed: {why}": np.array([n]) for why, n in counts.items()}  # fmt: skip
    if not numbers:
        return Section(name, title, "No run that is done has certificates: certificate_freq asks for them.")
    numbers["all"] = {"updates": np.array([n_updates]), "certified": np.array([n_certified])}
    found = (
        f"Of {n_updates:,} updates with a certificate that runs have noted, at most one for each hundredth of their "
        f"steps, {n_certified:,} {'was' if n_certified == 1 else 'were'} certified to improve the policy. ζ is how "
        "much less than in the latent model the real improvement may be, in units of return: the median over runs, "
        "each at its median over the last tenth of its steps; ∞ where a condition of the bound fails. A reason is "
        "counted wherever it is among those that a verdict names."
    )
    return Section(name, title, found, numbers=numbers, table=rows)


def speed(subject: Subject) -> Section:
    """
    :param subject: what the report is about
    :return: steps per second
    """
    name, title = "speed", "Speed"
    of_runs = {
        algorithm: [run for run in subject.results if run.algorithm.name == algorithm and run.steps_per_second > 0]
        for algorithm in subject.algorithms
    }
    of_runs = {algorithm: runs for algorithm, runs in of_runs.items() if runs}
    if not of_runs:
        return Section(name, title, "No run has learned yet.")
    rows: list[tuple[str, ...]] = [("game", *of_runs)]
    numbers: Numbers = {}
    for game in subject.games:
        cells = []
        for algorithm, runs in of_runs.items():
            speeds = np.array([run.steps_per_second for run in runs if run.game.name == game])
            cells.append(words.number(float(np.median(speeds))) if len(speeds) else words.NONE)
            if len(speeds):
                numbers[f"{algorithm} on {game}"] = {
                    "steps per second": speeds,
                    "median": np.array([np.median(speeds)]),
                }
        if set(cells) != {words.NONE}:
            rows.append((game, *cells))
    found = (
        "Steps per second of the programs that trained, with all seeds that learned in one; medians over runs, with "
        "those that are not done as far as they got. Programs may have shared a machine with others, or been on "
        "different ones: this compares algorithms only where they had the same."
    )
    shown = {algorithm: np.array([run.steps_per_second for run in runs]) for algorithm, runs in of_runs.items()}
    picture = Picture(
        "speed",
        "Steps per second of each run's program",
        pictures.dots(shown, subject.styles, "steps per second"),
        "A dot for each run, in the order of seeds and games, and a line at the median.",
    )
    return Section(name, title, found, [picture], numbers, rows)
