"""What a suite is: games, algorithms, steps and hyperparameters, read from a YAML file."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

SUITES = Path(__file__).with_name("suites")
NO_MODEL = {"reward_loss_coef": 0.0, "transition_loss_coef": 0.0}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"algo": "deepspi", "hyperparams": NO_MODEL},
    "deepmdp": {"algo": "deepmdp"},
    "deepspi": {"algo": "deepspi"},
    "dreamspi": {"algo": "dreamspi"},
    "sb3_ppo": {"algo": "ppo"},
    "sbx_ppo": {"algo": "sbx_ppo"},
}
"""What every suite knows: ``algo`` is RL Zoo's name, and ``ppo`` our own code without a world model."""

LEAST = {"n_timesteps": 1, "seeds_at_once": 1, "n_evaluations": 0, "eval_episodes": 1, "seconds_between_checkpoints": 0}
"""What the whole numbers of a suite have to be at least."""

USUAL = ("ppo", "deepmdp", "deepspi", "dreamspi")
"""Algorithms that a suite trains if nobody says which."""

RESERVED = ("lock", "report", "suite.yml", "asked.json", "tensorboard")
"""What a suite's folder has beside those of algorithms."""


class SuiteError(ValueError):
    """A suite, or what is asked of it, is wrong; the message says what, and what to do."""


@dataclass(frozen=True)
class Game:
    """
    :param name: in the suite
    :param env: its environment's id
    :param low: a score that counts as 0 (of random actions)
    :param high: a score that counts as 1 (a human's, or the best known)
    :param hyperparams: of this game, for all algorithms
    """

    name: str
    env: str
    low: float
    high: float
    hyperparams: dict[str, Any] = field(default_factory=dict)

    def normalized(self, score: Any) -> Any:
        """
        :param score: a number or an array of them
        :return: 0 for ``low``, 1 for ``high``
        """
        return (score - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Algorithm:
    """
    :param name: in the suite
    :param algo: RL Zoo's name
    :param hyperparams: of this algorithm, in all games; they come last
    """

    name: str
    algo: str
    hyperparams: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """
    :param name: of the suite
    :param title: a sentence on what it is
    :param n_timesteps: of each run
    :param scores: what ``low`` and ``high`` of a game are, in words
    :param score: the column of progress.jsonl that is a run's score
    :param games: by their names
    :param algorithms: by their names
    :param hyperparams: of all games and algorithms; they come first
    :param env_kwargs: of all environments
    :param seeds_at_once: runs of one game and algorithm that learn in one program, where environments are inside jit
    :param n_evaluations: of a run, by RL Zoo's ``EvalCallback``; 0: none
    :param eval_episodes: of each of them
    :param seconds_between_checkpoints: a run that is killed loses no more
    """

    name: str
    title: str
    n_timesteps: int
    scores: str
    games: dict[str, Game]
    algorithms: dict[str, Algorithm]
    hyperparams: dict[str, Any] = field(default_factory=dict)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seeds_at_once: int = 1
    n_evaluations: int = 0
    eval_episodes: int = 10
    seconds_between_checkpoints: int = 60
    score: str = "return"

    @property
    def usual_algorithms(self) -> list[str]:
        """
        :return: names of the algorithms that the suite adds, or else of :data:`USUAL` those that it has
        """
        added = [name for name in self.algorithms if name not in ALGORITHMS]
        return added or [name for name in USUAL if name in self.algorithms]

    def hyperparams_of(self, game: Game, algorithm: Algorithm) -> dict[str, Any]:
        """
        :param game: of the suite
        :param algorithm: of the suite
        :return: what replaces hyperparameters of RL Zoo's file; mappings, such as ``policy_kwargs``, add up
        """
        found: dict[str, Any] = {}
        for name, value in [pair for part in (self, game, algorithm) for pair in part.hyperparams.items()]:
            before = found.get(name)
            found[name] = before | value if isinstance(before, dict) and isinstance(value, dict) else value
        return found

    def plain(self) -> dict[str, Any]:
        """
        :return: what :func:`parse` makes the same suite from
        """
        return asdict(self) | {"algorithms": dict.fromkeys(ALGORITHMS) | asdict(self)["algorithms"]}

    def select(self, what: str, names: Sequence[str] | None) -> list[str]:
        """
        :param what: ``"games"`` or ``"algorithms"``
        :param names: that are asked for; ``None``: all games
        :return: the same, each of them known
        :raises SuiteError: one is not
        """
        known = getattr(self, what)
        for name in names or ():
            if name not in known:
                raise SuiteError(f"Suite {self.name} has no {what[:-1]} {name!r}{nearest(name, known)}")
        return list(dict.fromkeys(known if names is None else names))


def nearest(name: str, known: Iterable[str]) -> str:
    """
    :param name: that is not known
    :param known: names
    :return: what was meant, or what there is, in words that follow
    """
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {found[0]!r}?" if found else f"; there is {', '.join(known)}."


def known_suites() -> list[str]:
    """
    :return: names of the suites that come with the package
    """
    return sorted(path.stem for path in SUITES.glob("*.yml"))


def find(name: str) -> Path:
    """
    :param name: of a suite that comes with the package, or path of a file
    :return: path of its file
    :raises SuiteError: there is none
    """
    is_file = name.endswith((".yml", ".yaml"))
    path = Path(name) if is_file else SUITES / f"{name}.yml"
    if not path.is_file():
        what = f"There is no file {name}." if is_file else f"There is no suite {name!r}{nearest(name, known_suites())}"
        raise SuiteError(f"{what} A suite of your own is the path of a .yml file.")
    return path


def load(path: Path) -> Suite:
    """
    :param path: of a suite's file
    :return: the suite
    :raises SuiteError: the file is none
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error
    return parse(given, path)


def parse(given: Any, path: Path) -> Suite:
    """
    :param given: what a suite's file holds
    :param path: of the file, for messages
    :return: the suite
    :raises SuiteError: it is none
    """
    given = dict(expects(given, path, "the file", ("title", "n_timesteps", "games"), Suite.__dataclass_fields__))
    for name in ("hyperparams", "env_kwargs"):
        expects(given.get(name, {}), path, name)
    for name in ("name", "title", "scores", "score"):
        is_text(given.get(name, ""), f"{path}: {name}")
    for name, least in LEAST.items():
        if name in given:
            given[name] = whole_number(given[name], least, f"{path}: {name}")
    games = {name: _game(name, of_game, path) for name, of_game in expects(given["games"], path, "games").items()}
    if not games:
        raise SuiteError(f"{path}: games has to name one at least.")
    algorithms = {
        name: _algorithm(name, of_algorithm, path)
        for name, of_algorithm in (ALGORITHMS | expects(given.get("algorithms", {}), path, "algorithms")).items()
        if of_algorithm is not None  # a suite that does not have it says null
    }
    defaults = {"name": path.stem, "scores": "the suite's low and high"}
    return Suite(**defaults | given | {"games": games, "algorithms": algorithms})


def _game(name: str, given: Any, path: Path) -> Game:
    what = f"game {name}"
    given = expects(given, path, what, ("low", "high"), Game.__dataclass_fields__)
    expects(given.get("hyperparams", {}), path, f"hyperparams of {what}")
    is_text(given.get("env", name), f"{path}, {what}: env")
    for key in ("low", "high"):
        if isinstance(given[key], bool) or not isinstance(given[key], (int, float)):
            raise SuiteError(f"{path}, {what}: {key} has to be a number, but is {given[key]!r}.")
    game = Game(**{"name": name, "env": name} | given)
    if not game.low < game.high:
        raise SuiteError(f"{path}, {what}: low has to be below high, but they are {game.low} and {game.high}.")
    if game.name != game.env:
        _check_name(name, given, path)
    return game


def _algorithm(name: str, given: Any, path: Path) -> Algorithm:
    what, known = f"algorithm {name}", ALGORITHMS.get(name, {})
    given = expects(given, path, what, (), Algorithm.__dataclass_fields__)
    if "algo" not in known | given:
        raise SuiteError(f"{path}, {what} needs 'algo', RL Zoo's name of what it is, such as deepspi.")
    is_text((known | given)["algo"], f"{path}, {what}: algo")
    hyperparams = known.get("hyperparams", {}) | expects(given.get("hyperparams", {}), path, f"hyperparams of {what}")
    _check_name(name, given, path)
    return Algorithm(**{"name": name} | known | given | {"hyperparams": hyperparams})


def _check_name(name: str, given: dict[str, Any], path: Path) -> None:
    # it becomes the name of a folder on every system
    if given.get("name", name) != name or name in RESERVED or not re.fullmatch(r"[\w.+@=-]*\w[\w.+@=-]*", name):
        wrong = given.get("name", name)
        raise SuiteError(f"{path}: {wrong!r} cannot be a name here: take another, of letters, digits and . _ + @ = -")


def is_text(given: Any, what: str) -> None:
    """
    :param given: to be text
    :param what: it is
    :raises SuiteError: it is none
    """
    if not isinstance(given, str):
        raise SuiteError(f"{what} has to be text, but is {given!r}.")


def whole_number(given: Any, least: int, what: str) -> int:
    """
    :param given: to be a whole number; "1e6" is one, which YAML takes for text
    :param least: that it may be
    :param what: it is
    :return: the number
    :raises SuiteError: it is none
    """
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(given, bool) or not number.is_integer() or number < least:
        raise SuiteError(f"{what} has to be a whole number from {least} on, but is {given!r}.")
    return int(number)


def expects(
    given: Any, path: Path, what: str, needed: Sequence[str] = (), known: Iterable[str] | None = None
) -> dict[str, Any]:
    """
    :param given: to be a mapping
    :param path: of the file, for messages
    :param what: it is
    :param needed: keys that it must have
    :param known: keys that it may have; ``None``: any
    :return: the same
    :raises SuiteError: it is not so
    """
    if not isinstance(given, dict) or (needed and not given):
        raise SuiteError(f"{path}: {what} has to be a mapping (name: value), but is {given!r:.80}.")
    for key in needed:
        if key not in given:
            raise SuiteError(f"{path}: {what} needs {key!r}.")
    for key in given:
        if not isinstance(key, str):
            raise SuiteError(f"{path}: {what} has a key that is no text, {key!r}: put it into quotes.")
        if known is not None and key not in known:
            raise SuiteError(f"{path}: {what} has an unknown key {key!r}{nearest(key, known)}")
    return given
