"""The report on a suite: its numbers worked out in other ways, and the page as a user gets it."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rliable import metrics

from sbx_deepspi.report import page
from sbx_deepspi.suite.definition import SuiteError, parse
from sbx_deepspi.suite.folder import DONE, FAILED, RUNNING, WAITING, Folder, Run
from sbx_deepspi.suite.report import latex, scores, sections, statistics, words
from sbx_deepspi.suite.report.make import report
from sbx_deepspi.suite.report.statistics import Estimate

SECTIONS = ["missing", "aggregates", "profiles", "improvement", "efficiency", "games", "world_model", "certificates",
            "speed"]  # fmt: skip
N_TIMESTEPS = 1000
GAMES = {"gymnax/Breakout@4": dict(low=0, high=10), "Pong-v5": dict(low=-20.0, high=20.0)}
ALGORITHMS = ("ppo", "deepmdp", "deepspi")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "N_RESAMPLES", 50)
    monkeypatch.setattr(page, "DPI", 20)


# --- a folder ---------------------------------------------------------------------------------------


def empty(path: Path, games: dict[str, Any] | None = None, **suite: Any) -> Folder:
    given = {"title": "Made up.", "n_timesteps": N_TIMESTEPS, "games": games or GAMES, "scores": "random and best"}
    return Folder.of(path, parse(given | suite, Path("made_up.yml")))


def write_run(run: Run, normalized: float, state: str = DONE, until: float = 1.0, **known: Any) -> None:
    """A run whose returns rise to ``normalized``, where they are from 0.8 of its steps on."""
    rows = []
    for i in range(1, round(100 * until) + 1):
        timesteps = N_TIMESTEPS * i // 100
        score = normalized * min(1.0, timesteps / (0.8 * N_TIMESTEPS))
        row: dict[str, Any] = {"timesteps": timesteps, "seconds": i / 10, "episodes": i % 3, "length": 7.0}
        row["return"] = run.game.low + score * (run.game.high - run.game.low) if i % 3 else None
        if run.algorithm.algo != "ppo" and run.algorithm.name != "ppo":
            is_certified = i % 4 == 0
            loss = 2.0 if run.algorithm.name == "deepmdp" else 1.0
            row |= {
                "world_model/transition_loss": loss, "world_model/reward_loss": 0.1 * loss,
                "spi/certified": float(is_certified), "spi/zeta": 0.5 if is_certified else float("inf"),
                "spi/verdict": "certified: real improvement >= latent improvement - 0.5" if is_certified else
                f"not certified: D_IR sup 1.{i} >= 1/gamma = 1.0101; K_R of pi_b unbounded",
            }  # fmt: skip
        rows.append(row)
    given = {"state": state, "timesteps": rows[-1]["timesteps"] if rows else 0, "steps_per_second": 100.0 + run.seed}
    run.write(**(given | known))
    (run.path / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def filled(
    path: Path,
    score: Callable[[Run], float],
    names: Sequence[str] = ALGORITHMS,
    n_seeds: int = 3,
    games: dict[str, Any] | None = None,
    **suite: Any,
) -> Folder:
    folder = empty(path, games, **suite)
    folder.ask(names, list(folder.suite.games), range(n_seeds))
    for run in folder.asked():
        write_run(run, score(run))
    return folder


def far_apart(run: Run) -> float:
    return {"ppo": 0.2, "deepmdp": 0.5}.get(run.algorithm.name, 0.8) + 0.01 * run.seed


def alike(run: Run) -> float:
    return 0.5 + 0.1 * run.seed + (0.05 if run.algorithm.name == "ppo" else 0)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def number(folder: Path, section: str, series: str, quantity: str) -> float:
    found = [
        float(row["value"]) for row in rows_of(folder / "numbers.csv")
        if (row["section"], row["series"], row["quantity"]) == (section, series, quantity)
    ]  # fmt: skip
    assert len(found) == 1, (section, series, quantity, found)
    return found[0]


def check_page(made: Path) -> str:
    """All sections are there in order, all pictures are in the page, and files beside it are whole."""
    text = made.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', text) == SECTIONS
    images = re.findall(r'<img src="([^"]{0,22})', text)
    assert set(images) <= {"data:image/png;base64,"} and len(images) == len(list(made.parent.glob("*.png")))
    assert set(re.findall(r'href="([^#"][^"]*)"', text)) == {"numbers.csv", "scores.csv", "tables.tex"}
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"base64,[^\"]*", "", text))
    for row in rows_of(made.parent / "numbers.csv"):
        float(row["value"])
    tables = (made.parent / "tables.tex").read_text(encoding="utf-8")
    assert tables.count(r"\toprule") == tables.count(r"\end{table}") and not re.search(
        r"(?<!\\)[_%#]\w", re.sub(r"\\label.*", "", tables[30:])
    )
    return text.replace("&gt;", ">").replace("&lt;", "<").replace("&#39;", "'")


# --- statistics, worked out in another way ----------------------------------------------------------


def test_aggregates_are_what_they_are_called() -> None:
    matrix = np.random.default_rng(0).normal(0.7, 0.5, (4, 3))
    iqm, median, mean, gap = statistics.aggregates(matrix).value
    ordered = sorted(matrix.ravel())
    assert iqm == pytest.approx(sum(ordered[3:9]) / 6)
    assert median == pytest.approx(sorted(matrix.mean(axis=0))[1])
    assert mean == pytest.approx(matrix.sum() / 12)
    assert gap == pytest.approx(sum(1 - min(score, 1) for score in ordered) / 12)


def test_intervals_are_the_bootstraps_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of n runs, drawn again with NumPy alone: a game keeps its own runs."""
    monkeypatch.setattr(statistics, "N_RESAMPLES", 2000)
    matrix = np.random.default_rng(1).normal(size=(5, 4)) + 100 * np.arange(4)
    np.random.seed(3)  # noqa: NPY002
    expected_next = np.random.RandomState(3).random()
    found = statistics.estimate(lambda drawn: np.array([drawn.mean()]), matrix)
    assert np.random.random() == expected_next  # noqa: NPY002
    again = statistics.estimate(lambda drawn: np.array([drawn.mean()]), matrix)
    assert (found.low, found.high) == (again.low, again.high)
    chosen = np.random.default_rng(2).integers(5, size=(20_000, 5, 4))
    means = np.take_along_axis(matrix[None], chosen, axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose([found.low[0], found.high[0]], np.quantile(means, [0.025, 0.975]), atol=0.03)


def test_probability_of_improvement_counts_pairs() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 5, (4, 3)).astype(float), generator.integers(0, 5, (6, 3)).astype(float)
    pairs = [
        float(x[i, g] > y[j, g]) + 0.5 * float(x[i, g] == y[j, g])
        for g in range(3)
        for i, j in product(range(4), range(6))
    ]
    assert statistics.improvement(x, y).value == pytest.approx(np.mean(pairs))
    assert statistics.improvement(x, y).value == pytest.approx(metrics.probability_of_improvement(x, y))
    better = statistics.improvement(x + 10, y)
    assert (better.low, better.value, better.high) == (1, 1, 1)


def test_profiles_and_efficiency() -> None:
    matrix = np.array([[0.0, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(
        statistics.profile(matrix, np.array([-1, 0, 0.5, 0.9, 1])).value, [1, 0.75, 0.25, 0.25, 0]
    )
    curves = np.random.default_rng(0).normal(size=(4, 2, 3))
    found = statistics.efficiency(curves)
    for step in range(3):
        assert found.value[step] == pytest.approx(np.mean(sorted(curves[:, :, step].ravel())[2:6]))
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_one_run_gives_no_interval() -> None:
    assert not statistics.aggregates(np.array([[0.1, 0.9]])).has_interval
    assert not statistics.improvement(np.ones((3, 2)), np.ones((1, 2))).has_interval
    assert statistics.too_narrow(2) == pytest.approx(1 - 0.5**0.5)


# --- scores -----------------------------------------------------------------------------------------


def frame(**columns: Any) -> pd.DataFrame:
    return scores.numeric(pd.DataFrame(columns))


def test_a_final_score_is_of_the_episodes_of_the_last_tenth() -> None:
    means = [0, 0, 10.0, None, 2.0]
    rows = frame(timesteps=[80, 90, 95, 98, 100], episodes=[9, 9, 3, 0, 1], **{"return": means, "grid/value": means})
    assert scores.last_mean(rows, "return") == (3 * 10 + 1 * 2) / 4
    assert scores.last_mean(rows, "grid/value") == 6  # is no mean of episodes
    assert np.isnan(scores.last_mean(rows, "world_model/reward_loss"))
    none = frame(timesteps=[50, 100], episodes=[1, 0], **{"return": [1.0, float("nan")]})
    assert np.isnan(scores.last_mean(none, "return"))
    assert np.isnan(scores.last_mean(scores.numeric(pd.DataFrame([])), "return"))


def test_a_curve_is_on_common_steps() -> None:
    rows = frame(timesteps=[10, 20, 25, 60, 75], episodes=[0, 1, 3, 0, 2], **{"return": [None, 4.0, 8.0, None, 1.0]})
    curve = scores.curve(rows, "return", np.array([10, 30, 60, 80, 100]))
    np.testing.assert_array_equal(curve, [7, 7, 7, 1, np.nan])
    # what fills the last rollout
    assert scores.curve(frame(timesteps=[10, 14], x=[1.0, 3.0]), "x", np.array([5.0, 10.0])).tolist() == [2, 2]
    assert np.isnan(scores.curve(rows, "nothing", np.arange(3.0))).all()


def test_what_is_no_number_is_none() -> None:
    rows = frame(timesteps=[1, 2, None], x=["1", "a word", 3], y=[None, None, None])
    assert rows["x"].tolist()[0] == 1 and rows["x"].isna().tolist() == [False, True] and rows["y"].isna().all()


def test_the_largest_table_is_compared() -> None:
    assert scores.largest_table(np.array([[3, 3], [3, 3]])) == ([0, 1], [0, 1])
    # an algorithm that was tried on one game does not take the others from those that were tried on all
    assert scores.largest_table(np.array([[3, 3, 3], [3, 3, 3], [3, 0, 0]])) == ([0, 1], [0, 1, 2])
    # a game in which one run is done does not take the intervals from the others
    assert scores.largest_table(np.array([[3, 3, 1], [3, 3, 3]])) == ([0, 1], [0, 1])
    # when the first seeds are done and a few second ones, all games are there
    assert scores.largest_table(np.array([[2, 1, 1, 1, 1], [2, 1, 1, 1, 1]])) == ([0, 1], [0, 1, 2, 3, 4])
    assert scores.largest_table(np.array([[9, 9, 0], [0, 0, 1]])) == ([0], [0, 1])
    assert scores.largest_table(np.zeros((0,))) == ([], [])


# --- words ------------------------------------------------------------------------------------------


def test_sentences_say_what_intervals_allow() -> None:
    def of(*numbers: float) -> Estimate:
        return Estimate(*map(np.array, numbers))

    apart = words.compared("deepspi", "ppo", (of(0.8, 0.7, 0.9), of(0.5, 0.4, 0.6)), of(0.9, 0.8, 1.0))
    assert apart == (
        "deepspi's IQM is 0.80 [0.70, 0.90], ppo's 0.50 [0.40, 0.60]: deepspi's interval lies above ppo's. "
        "P(deepspi > ppo) is 0.90 [0.80, 1.00], and the interval lies above 0.5."
    )
    touching = words.compared("a", "b", (of(0.5, 0.4, 0.6), of(0.7, 0.6, 0.8)), of(0.3, 0.1, 0.5))
    assert "the intervals overlap, so by their IQM this suite does not tell them apart" in touching
    assert touching.endswith("the interval includes 0.5.")
    below = words.compared("a", "b", (of(-2, -3, -1), of(0.7, 0.6, 0.8)), of(0.1, 0, 0.4))
    assert "a's interval lies below b's" in below and below.endswith("lies below 0.5.")
    alone = words.compared("a", "b", (of(0.5, np.nan, np.nan), of(0.7, np.nan, np.nan)), of(0, np.nan, np.nan))
    assert "one run of a game gives no interval" in alone and "nan" not in alone


def test_numbers_and_names_in_words() -> None:
    assert [words.number(x) for x in (0.12345, 12345.6, np.nan, np.inf, -np.inf)] == ["0.123", "12,346", "–", "∞", "-∞"]
    assert words.of_seeds([3, 0, 1]) == "seeds 0–1, 3" and words.of_seeds([4]) == "seed 4"
    assert words.listed(["a", "b", "c"]) == "a, b and c" and words.listed(["a"]) == "a"
    assert words.with_interval(Estimate(np.array(0.0123), np.array(0.01), np.array(0.0456))) == "0.0123 [0.01, 0.0456]"
    assert words.reasons("not certified: D_IR sup 1.2 >= 1/gamma = 1.01; K_P unbounded; zeta is nan") == [
        "D_IR sup >= 1/gamma", "K_P unbounded", "zeta is not finite",
    ]  # fmt: skip
    assert words.reasons("certified: real improvement >= latent improvement - 0.5, with errors") == []


def test_latex_is_escaped() -> None:
    text = latex.table([("a_b", "±"), ("50 %", "-1 ± 2 (3)"), ("x", "sb3-ppo")], "P(X > Y)", "games")
    assert r"a\_b & $\pm$ \\" in text and r"50 \% & $-$1 $\pm$ 2 (3) \\" in text and "sb3-ppo" in text
    assert r"\caption{P(X $>$ Y)}" in text and r"\begin{tabular}{lr}" in text


def test_pictures_have_names_of_their_own() -> None:
    names = sections.file_names("curve", ["a/b", "a@b", "A@B", "Ωx", "Pong-v5"])
    assert names == ["curve_a_b", "curve_a_b_2", "curve_A_B_3", "curve__x", "curve_Pong-v5"]


def test_pairs() -> None:
    assert sections.pairs(["ppo", "deepmdp", "deepspi"]) == [
        ("deepspi", "ppo"), ("deepspi", "deepmdp"), ("deepmdp", "ppo"),
    ]  # fmt: skip
    assert sections.pairs(["mine", "yours"]) == [("yours", "mine")]
    assert sections.pairs(["mine"]) == sections.pairs([]) == []


# --- the page ---------------------------------------------------------------------------------------


def test_a_report_on_all_that_was_asked_for(tmp_path: Path) -> None:
    folder = filled(tmp_path / "suite", far_apart)
    made = report(folder.path, None)
    assert made == folder.path / "report" / "index.html"
    text = check_page(made)
    assert "18 of 18 runs that were asked for are done." in text and "Nothing: all 18 runs" in text
    assert "2 games, with 3 runs of each algorithm in each" in text and "(random and best)" in text
    assert "deepspi's interval lies above ppo's" in text and "deepspi's interval lies above deepmdp's" in text
    assert "the intervals overlap" not in text
    names = {path.stem for path in made.parent.glob("*.png")}
    assert names == {
        "aggregates", "profiles", "improvement", "efficiency", "speed", "curve_gymnax_Breakout_4", "curve_Pong-v5",
        "losses_gymnax_Breakout_4", "losses_Pong-v5",
    }  # fmt: skip

    # what the page says is what the file says
    for algorithm, iqm in (("ppo", 0.21), ("deepmdp", 0.51), ("deepspi", 0.81)):
        in_file = [number(made.parent, "aggregates", algorithm, f"IQM{end}") for end in ("", ", low", ", high")]
        assert in_file[0] == pytest.approx(iqm)
        value, low, high = in_file
        assert f"<td>{value:.2f} [{low:.2f}, {high:.2f}]</td>" in text
    assert number(made.parent, "improvement", "deepspi > ppo", "probability of improvement") == 1
    assert number(made.parent, "games", "ppo on Pong-v5", "mean score") == pytest.approx(-20 + 40 * 0.21)
    assert "-11.6 ± 0.4 (3)" in text
    assert number(made.parent, "world_model", "deepspi / deepmdp", "transition loss L_P, median") == 0.5
    assert "lower than deepmdp's in 2 of 2 games, and 0.5 of it in the median" in text
    assert number(made.parent, "certificates", "deepspi on Pong-v5", "share certified") == 0.25
    assert "D_IR sup >= 1/gamma (225 times)" in text and "25.0%" in text
    assert number(made.parent, "speed", "ppo on Pong-v5", "median") == 101
    assert "have shared a machine" in text

    runs = rows_of(made.parent / "scores.csv")
    assert list(runs[0]) == ["algorithm", "game", "seed", "state", "timesteps", "score", "normalized"]
    assert len(runs) == 18
    of_one = next(run for run in runs if (run["algorithm"], run["game"], run["seed"]) == ("deepspi", "Pong-v5", "2"))
    assert float(of_one["normalized"]) == pytest.approx(0.82) and float(of_one["score"]) == pytest.approx(12.8)
    # the same folder, the same numbers
    again = sections.Subject(folder.suite, scores.read(folder))
    for name, estimates in again.aggregates.items():
        assert number(made.parent, "aggregates", name, "mean, low") == estimates.low[2]


def test_a_report_on_algorithms_that_are_alike(tmp_path: Path) -> None:
    """And on scores below the low one and above the high one, and algorithms of the user's own."""
    own = {name: {"algo": "deepspi", "hyperparams": {"gamma": 0.9}} for name in ("mine", "a_b@c")}
    games = {"Low-v0": dict(low=1000.0, high=1001.0), "$\\High$%": dict(low=0.0, high=0.001)}
    names = ["ppo", *own]
    folder = filled(tmp_path, lambda run: 20 * alike(run) - 15, names, games=games, algorithms=own)
    made = report(tmp_path, tmp_path / "some" / "where")
    assert made == tmp_path / "some" / "where" / "index.html"
    text = check_page(made)
    assert "mine's IQM is -3.00 [" in text
    assert "the intervals overlap, so by their IQM this suite does not tell them apart" in text
    assert "and the interval includes 0.5" in text and "interval lies above" not in text
    assert "deepspi / deepmdp" not in text
    assert folder.suite.algorithms["mine"].algo == "deepspi"


def test_nothing_is_done(tmp_path: Path) -> None:
    folder = empty(tmp_path)
    with pytest.raises(SuiteError, match=r"No runs of the suite in .* were asked for"):
        report(tmp_path, None)
    folder.ask(ALGORITHMS, ["Pong-v5"], range(2))
    text = check_page(report(tmp_path, None))
    assert "0 of 6 runs that were asked for are done." in text and "6 are waiting" in text
    assert "No run is done yet." in text and "<td>seeds 0–1</td>" in text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """An algorithm that has nothing, runs that failed, that are under way, that have no episodes, and damage."""
    folder = filled(tmp_path, alike)
    folder.ask(["dreamspi"], ["Pong-v5"], [0])
    ppo, other, third = (run for run in folder.asked() if run.algorithm.name == "ppo" and run.game.name == "Pong-v5")
    write_run(ppo, 0.5, FAILED, 0.3, error="Traceback (most recent call last):\n  …\nValueError: no <space> left\n")
    write_run(other, 100.0, RUNNING, 0.5)
    text = check_page(report(tmp_path, None))
    assert "16 of 19 runs that were asked for are done." in text
    assert "ValueError: no <space> left" in text and "Traceback" not in text
    assert "1 is failed" not in text and "1 failed" in text
    assert "dreamspi, which is not done in all of these games" in text
    assert "2 runs that are not done have no part in means" in text
    folder_of_report = tmp_path / "report"
    # the run that is under way would lead by far
    assert number(folder_of_report, "games", "ppo on Pong-v5", "mean score") < 20
    quantities = {row["quantity"] for row in rows_of(folder_of_report / "numbers.csv")}
    assert {"return of seed 0, not done", "return of seed 1, not done"} <= quantities
    states = {(run["state"], run["score"] != "") for run in rows_of(folder_of_report / "scores.csv")}
    assert states == {(DONE, True), (FAILED, False), (RUNNING, False), (WAITING, False)}

    rows = [{"timesteps": 100 * i, "episodes": 1, "return": [float("nan"), None][i % 2]} for i in range(11)]
    for progress in ("", "\n".join(map(json.dumps, rows))):
        (third.path / "progress.jsonl").write_text(progress)
        found = sections.missing(sections.Subject(folder.suite, scores.read(folder)))
        assert "1 is done, but without a score in the last tenth of its steps" in found.found
    (third.path / "progress.jsonl").write_text('{"timesteps": 1\n')
    found = sections.missing(sections.Subject(folder.suite, scores.read(folder)))
    assert "1 is damaged" in found.found
    assert "ppo/deepspi/Pong-v5_3/progress.jsonl is damaged" in str(found.table)


def test_code_that_differs_is_named(tmp_path: Path) -> None:
    folder = filled(tmp_path, far_apart, ["ppo", "deepspi"], 2)
    runs = folder.asked()
    for run in runs:
        run.write(versions={"jax": "0.10.2"}, commit="a" * 40)
    found = sections.made_differently(sections.Subject(folder.suite, scores.read(folder)))
    assert found == ""
    runs[0].write(versions={"jax": "0.10.3"}, commit="b" * 40 + "+")
    found = sections.made_differently(sections.Subject(folder.suite, scores.read(folder)))
    n = len(runs) - 1
    assert f"by which: commit aaaaaaa ({n}), bbbbbbb+ (1); jax 0.10.2 ({n}), 0.10.3 (1)." in found


def test_unequal_seeds_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    folder = filled(tmp_path, far_apart)
    folder.ask(["deepspi"], ["Pong-v5"], [3, 4])
    for run in folder.asked()[-2:]:
        write_run(run, 5.0)
    results = scores.read(folder)
    compared = scores.compare(results)
    assert {name: compared.matrix(name).shape for name in compared.runs} == dict.fromkeys(ALGORITHMS, (3, 2))
    assert compared.matrix("deepspi").max() < 1  # seeds that are in all games go before others
    assert compared.curves("deepspi", "return", scores.grid(N_TIMESTEPS)).shape == (3, 2, scores.N_BINS)
    subject = sections.Subject(folder.suite, results)
    assert "more are done than elsewhere (2 of deepspi)" in sections.what_is_compared(subject)
    assert "too narrow: with 3, those of a mean by about 18%" in sections.what_is_compared(subject)
    assert "28.2 ± 91.8" not in str(sections.games(subject).table) and "(5)" in str(sections.games(subject).table)


def test_one_seed_and_one_game(tmp_path: Path) -> None:
    one_game = {"Pong-v5": GAMES["Pong-v5"]}
    filled(tmp_path / "seed", far_apart, n_seeds=1)
    text = check_page(report(tmp_path / "seed", None))
    assert "one run of a game gives no interval, so this suite does not tell them apart" in text
    assert "<td>0.80</td>" in text
    folder = filled(tmp_path / "game", far_apart, games=one_game)
    text = " ".join(sections.findings(sections.Subject(folder.suite, scores.read(folder))))
    assert "1 game, with 3 runs of each algorithm in it" in text and "deepspi's interval lies above ppo's" in text
    filled(tmp_path / "one", far_apart, ["ppo"], 1, one_game)
    text = check_page(report(tmp_path / "one", None))
    assert "There are no two algorithms to compare." in text and "No run with a world model" in text


def test_what_is_no_suite_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"holds no runs of a suite: it has no suite\.yml"):
        report(tmp_path, None)
    folder = filled(tmp_path, far_apart, ["ppo"], 1)
    (tmp_path / "file").touch()
    with pytest.raises(SuiteError, match="goes into a folder, but"):
        report(tmp_path, tmp_path / "file")
    folder.ask(["ppo"], ["Pong-v5"], [1])
    (tmp_path / "asked.json").write_text('[["ppo", "Chess", 0]]')
    with pytest.raises(SuiteError, match=r"asked\.json does not fit suite\.yml beside it"):
        report(tmp_path, None)
