"""Files that hold no code, that are never half written, and what happens to those that somebody has tampered with."""

import base64
import errno
import inspect
import io
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sbx_deepspi import CnnPolicy, DeepSPI, MlpPolicy
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.saving.environment import load_normalization
from sbx_deepspi.saving.format import JSON, SYSTEM_INFO, TENSORS, CheckpointError

TINY: dict[str, Any] = dict(
    n_steps=8, batch_size=8, n_epochs=1, seed=0,
    policy_kwargs=dict(net_arch=[3], features_extractor_kwargs=dict(features_dim=4), n_components=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DeepSPI:
    return DeepSPI("MlpPolicy", "CartPole-v1", **TINY).learn(8)


@pytest.fixture(scope="module")
def saved(model: DeepSPI) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def load(data: bytes, **kwargs: Any) -> DeepSPI:
    return DeepSPI.load(io.BytesIO(data), **kwargs)


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_json(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with its JSON changed and all checksums in order, as a hostile hand would do it."""
    contents = members(data)
    plain = json.loads(contents[JSON])
    change(plain)
    return archive_of(contents | {JSON: json.dumps(plain).encode()})


def with_attribute(data: bytes, name: str, value: Any) -> bytes:
    """The file with another value for an attribute, and without the tensors of the old one."""
    data = with_json(data, lambda plain: plain["attributes"].update({name: value}))
    return with_tensors(data, lambda tensors: tensors.pop(f"attributes/{name}", None))


def with_tensors(data: bytes, change: Callable[[dict[str, np.ndarray]], Any]) -> bytes:
    contents = members(data)
    tensors = safetensors.numpy.load(contents[TENSORS])
    change(tensors)
    return archive_of(contents | {TENSORS: safetensors.numpy.save(tensors)})


def assert_same(first: DeepSPI, second: DeepSPI) -> None:
    ours, theirs = first.policy.tensors(), second.policy.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    np.testing.assert_array_equal(first.key, second.key)
    for name in (
        "num_timesteps",
        "_n_updates",
        "gamma",
        "n_steps",
        "observation_space",
        "action_space",
        "policy_kwargs",
    ):
        assert getattr(first, name) == getattr(second, name), name


# --- what is saved ----------------------------------------------------------------------------------

PLAIN_VALUES = {
    "numbers": [True, -3, 2**70, 0.1, float("inf"), np.float32(0.1), np.int64(-1), np.bool_(True)],
    "text": ["π", "", Path("a/b")],
    "containers": [(1, (2.5,)), deque([1, 2], maxlen=3), deque(), {"$array": 1}, {1: "a", (2, 3): {"b": None}}],
    "arrays": [np.arange(6.0).reshape(2, 3), np.array(True), np.zeros((0, 2), np.uint8), np.float16([1, 2])],
    "schedules": [FloatSchedule(LinearSchedule(1e-3, 0, 0.5)), ConstantSchedule(2.0), LinearSchedule(1, 2, 3)],
    "functions": [nn.relu, jax.nn.silu, jnp.tanh, optax.adam, optax.rmsprop, th.nn.ELU, MlpPolicy, CnnPolicy],
    "spaces": [
        spaces.Box(np.float32([-1, -np.inf]), np.float32([1, np.inf])), spaces.Box(0, 255, (2, 3), np.uint8),
        spaces.Discrete(3, start=2), spaces.MultiDiscrete([2, 5]), spaces.MultiBinary(4),
    ],
    "dtypes": [np.dtype("int16")],
}  # fmt: skip


def round_trip(value: Any) -> Any:
    contents = checkpoint.Checkpoint("Test", {"value": value}, None, {})
    return checkpoint.from_bytes(checkpoint.to_bytes(contents)[0], False, {}).attributes["value"]


@pytest.mark.parametrize("kind", PLAIN_VALUES)
def test_plain_values_come_back(kind: str) -> None:
    for value in PLAIN_VALUES[kind]:
        restored = round_trip([value])[0]
        assert type(restored) is type(value)
        if isinstance(value, np.ndarray | np.generic):
            assert restored.dtype == value.dtype
            np.testing.assert_array_equal(restored, value)
        elif isinstance(value, deque):
            assert (restored, restored.maxlen) == (value, value.maxlen)
        elif kind == "schedules":
            assert [restored(p) for p in (1.0, 0.3, 0.0)] == [value(p) for p in (1.0, 0.3, 0.0)]
        else:
            assert restored == value
    assert np.isnan(round_trip(float("nan")))
    key = round_trip(jax.random.PRNGKey(3))
    assert isinstance(key, jax.Array)
    np.testing.assert_array_equal(key, jax.random.PRNGKey(3))


def test_a_file_is_plain(saved: bytes) -> None:
    contents = members(saved)
    assert set(contents) == {JSON, TENSORS, SYSTEM_INFO}
    plain = json.loads(contents[JSON])
    assert (plain["version"], plain["written_by"]) == (3, "DeepSPI")
    assert plain["attributes"]["policy_class"] == {"$named": "sbx_deepspi.sb3.policies.MlpPolicy"}
    assert plain["attributes"]["world_model"] is True
    assert b"pickle" not in contents[JSON]
    tensors = safetensors.numpy.load(contents[TENSORS])
    assert {
        "state/learner/parameters/encoder/Dense_0/kernel", "state/learner/parameters/reward_model/hidden_0/kernel",
        "state/learner/optimizer_state/1/inner_state/0/nu/critic/Dense_0/bias", "state/key", "state/n_epochs",
        "state/episodes/steps", "state/episodes/lengths", "state/episodes/n_ended", "prediction_key",
    } <= tensors.keys()  # fmt: skip
    assert all(name.startswith(("state/", "attributes/", "prediction_key")) for name in tensors)


def test_a_file_says_whether_there_is_a_world_model() -> None:
    file = io.BytesIO()
    ppo = DeepSPI("MlpPolicy", "CartPole-v1", **TINY, reward_loss_coef=0.0, transition_loss_coef=0.0)
    ppo.save(file)
    contents = members(file.getvalue())
    assert json.loads(contents[JSON])["attributes"]["world_model"] is False
    assert not any("_model" in name for name in safetensors.numpy.load(contents[TENSORS]))
    loaded = load(file.getvalue())
    assert not loaded.policy.world_model
    assert_same(ppo, loaded)
    with pytest.raises(CheckpointError, match="not those that its attributes describe"):
        load(with_attribute(file.getvalue(), "world_model", True))


def test_what_is_saved_is_the_configuration_the_progress_and_what_the_user_set(saved: bytes, model: DeepSPI) -> None:
    names = json.loads(members(saved)[JSON])["attributes"].keys()
    arguments = inspect.signature(DeepSPI.__init__).parameters.keys() - {"self", "policy", "env", "device"}
    not_saved = {"_init_setup_model", "use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs"}
    expected = {{"stats_window_size": "_stats_window_size"}.get(name, name) for name in arguments - not_saved}
    assert expected <= names
    assert not names & {"policy", "env", "key", "episodes", "rollout_buffer", "lr_schedule", "logger", "device"}
    model.note = 1
    try:
        file = io.BytesIO()
        model.save(file)
    finally:
        del model.note
    assert json.loads(members(file.getvalue())[JSON])["attributes"].keys() - names == {"note"}


def test_every_optimiser_that_is_stored_by_name_has_a_state_that_is() -> None:
    parameters = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    for name in checkpoint.NAMED["optax"]:
        state = optax.inject_hyperparams(getattr(optax, name))(learning_rate=0.1).init(parameters)
        contents = checkpoint.Checkpoint("Test", {}, None, checkpoint.flatten(state, "state/"))
        read = checkpoint.from_bytes(checkpoint.to_bytes(contents)[0], False, {})
        restored = checkpoint.unflatten(read.tensors, jax.eval_shape(lambda state=state: state), "state/")
        jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state))


def test_dtypes_that_could_not_be_read_are_refused_where_they_are_saved() -> None:
    tensors = checkpoint.flatten(optax.adam(0.1, mu_dtype="bfloat16").init({"kernel": jnp.ones(3)}), "state/")
    with pytest.raises(CheckpointError, match=r"state/0/mu/kernel is of dtype bfloat16, .* use one of bool, int8"):
        checkpoint.to_bytes(checkpoint.Checkpoint("Test", {}, None, tensors))
    for value in (np.longdouble(1), np.zeros(2, np.longdouble), jnp.zeros(2, jnp.bfloat16), np.zeros(2, complex)):
        (left_out,) = round_trip([value])
        assert isinstance(left_out, checkpoint.Missing) and left_out.name == "value/0"


def test_names_of_arrays_do_not_collide() -> None:
    contents = checkpoint.Checkpoint("Test", {"environment": np.ones(1)}, np.zeros(2), {})
    read = checkpoint.from_bytes(checkpoint.to_bytes(contents)[0], False, {})
    assert (len(read.attributes["environment"]), len(read.environment)) == (1, 2)
    with pytest.raises(CheckpointError, match="Two arrays would be called 'attributes/value/b/c'"):
        round_trip({"b/c": np.zeros(1), "b": {"c": np.zeros(2)}})


class HomeMade(LinearSchedule):
    pass


@pytest.mark.parametrize(
    "schedule", [lambda progress: 1e-3 * progress, HomeMade(1e-3, 0, 1)], ids=["lambda", "home-made class"]
)
def test_what_has_no_plain_form_is_left_out_or_pickled(schedule: Any, tmp_path: Path) -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY, learning_rate=schedule)
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"could not hold learning_rate = "):
        DeepSPI.load(tmp_path / "model").lr_schedule(1.0)
    model.save(tmp_path / "model", pickle=True)
    with pytest.raises(CheckpointError, match=r"learning_rate of the checkpoint is pickled, .* trust=True"):
        DeepSPI.load(tmp_path / "model")
    assert DeepSPI.load(tmp_path / "model", trust=True).learning_rate(0.5) == 0.5e-3
    assert DeepSPI.load(tmp_path / "model", custom_objects={"learning_rate": 0.0}).learning_rate == 0.0
    model.save(tmp_path / "model", exclude=["learning_rate"])
    assert DeepSPI.load(tmp_path / "model").learning_rate == 3e-4  # the default


def test_home_made_policies_and_optimisers_have_to_be_given_again(tmp_path: Path) -> None:
    class Own(MlpPolicy):
        pass

    model = DeepSPI(Own, "CartPole-v1", **TINY)
    with pytest.warns(UserWarning, match=r"policy_class = .*Own.* has no plain form"):
        model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"could not hold policy_class = .*Own"):
        DeepSPI.load(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", custom_objects={"policy_class": Own})
    assert type(loaded.policy) is Own
    assert_same(model, loaded)
    kwargs = TINY["policy_kwargs"] | {"optimizer_class": lambda learning_rate: optax.sgd(learning_rate)}
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY | {"policy_kwargs": kwargs})
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"could not hold policy_kwargs\['optimizer_class'\] = "):
        DeepSPI.load(tmp_path / "model")
    assert_same(model, DeepSPI.load(tmp_path / "model", policy_kwargs=kwargs))


def test_subclasses_save_and_load(model: DeepSPI, tmp_path: Path) -> None:
    class Variant(DeepSPI):
        pass

    variant = Variant("MlpPolicy", "CartPole-v1", **TINY)
    variant.note = {"anything": (1, 2.0)}
    variant.save(tmp_path / "variant")
    loaded = Variant.load(tmp_path / "variant")
    assert type(loaded) is Variant
    assert loaded.note == {"anything": (1, 2.0)}
    assert_same(variant, loaded)
    with pytest.raises(CheckpointError, match=r"saved by Variant: load it with Variant.load"):
        DeepSPI.load(tmp_path / "variant")


def test_optimisers_activations_and_schedules_by_name(tmp_path: Path) -> None:
    kwargs = TINY["policy_kwargs"] | dict(
        activation_fn=th.nn.ELU, optimizer_class=optax.rmsprop, optimizer_kwargs=dict(decay=0.8)
    )
    schedules = dict(learning_rate=LinearSchedule(1e-2, 1e-3, 0.5), clip_range=FloatSchedule(0.3), clip_range_vf=0.7)
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY | {"policy_kwargs": kwargs}, **schedules).learn(8)
    model.save(tmp_path / "model.zip")
    loaded = DeepSPI.load(str(tmp_path / "model.zip"), env=model.env)
    assert_same(model, loaded)
    for progress in (1.0, 0.6, 0.0):
        assert loaded.lr_schedule(progress) == model.lr_schedule(progress)
        assert loaded.clip_range_schedule(progress) == 0.3
    assert loaded.clip_range_vf_schedule(0.5) == 0.7
    loaded.learn(8)


def test_paths_files_and_system_info(model: DeepSPI, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.warns(UserWarning, match="does not exist. Will create it"):
        model.save(str(tmp_path / "new" / "model"))
    (tmp_path / "folder.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        model.save(tmp_path / "folder")
    with (tmp_path / "open").open("wb") as file:
        model.save(file)
    for path in (tmp_path / "new/model.zip", tmp_path / "folder.zip_2", tmp_path / "open"):
        assert_same(model, DeepSPI.load(path, print_system_info=True))
        assert capsys.readouterr().out.count("Stable-Baselines3") == 2
    DeepSPI.load(
        io.BytesIO(archive_of(members((tmp_path / "open").read_bytes()) | {SYSTEM_INFO: b"a\x1b[2J\nb"})),
        print_system_info=True,
    )
    assert capsys.readouterr().out.endswith("a?[2J\nb\n")
    link = tmp_path / "link.zip"
    link.symlink_to(tmp_path / "open")
    model.save(link)
    assert link.is_symlink()
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o666 & ~current_umask()
    with pytest.raises(FileNotFoundError):
        DeepSPI.load(tmp_path / "nothing")


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_load_refuses_other_policy_kwargs(saved: bytes) -> None:
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        load(saved, policy_kwargs=dict(net_arch=[5]))
    assert load(saved, policy_kwargs=TINY["policy_kwargs"]).num_timesteps == 8


def test_normalisation_is_saved_with_the_model(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0), clip_obs=5.0)
    model = DeepSPI("MlpPolicy", env, **TINY).learn(32)
    model.save(tmp_path / "model")
    normalized = load_normalization(tmp_path / "model", make_vec_env("CartPole-v1", 3))
    assert normalized.clip_obs == 5.0
    np.testing.assert_array_equal(normalized.obs_rms.mean, env.obs_rms.mean)
    np.testing.assert_array_equal(normalized.obs_rms.var, env.obs_rms.var)
    assert normalized.obs_rms.count == env.obs_rms.count
    assert normalized.ret_rms.var == env.ret_rms.var
    observations = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(normalized.normalize_obs(observations), env.normalize_obs(observations))
    with pytest.raises(CheckpointError, match="not of this environment's observations"):
        load_normalization(tmp_path / "model", make_vec_env("Pendulum-v1"))

    fresh = VecNormalize(make_vec_env("CartPole-v1", 3))
    DeepSPI.load(tmp_path / "model", env=fresh)
    np.testing.assert_array_equal(fresh.obs_rms.mean, env.obs_rms.mean)
    assert (fresh.obs_rms.count, fresh.clip_obs) == (env.obs_rms.count, 10.0)
    rewards_only = VecNormalize(make_vec_env("CartPole-v1", 3), norm_obs=False)
    with pytest.warns(UserWarning, match="has norm_obs=False"):
        DeepSPI.load(tmp_path / "model", env=rewards_only)
    assert rewards_only.ret_rms.var == env.ret_rms.var
    used = VecNormalize(make_vec_env("CartPole-v1", 3))
    used.reset()
    DeepSPI.load(tmp_path / "model", env=used)
    assert used.obs_rms.count < 4

    DeepSPI("MlpPolicy", "CartPole-v1", **TINY).save(tmp_path / "without")
    with pytest.raises(CheckpointError, match="holds no VecNormalize statistics"):
        load_normalization(tmp_path / "without", make_vec_env("CartPole-v1"))


def test_hostile_normalisation(tmp_path: Path, harmless: Path) -> None:
    model = DeepSPI("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1", 2)), **TINY)
    model.save(tmp_path / "model")
    data = (tmp_path / "model.zip").read_bytes()
    zeros = [0.0] * 4
    good = dict(mean=zeros, var=zeros, count=1.0)
    for change, sentence in [
        (dict(settings=dict(nonsense=1)), "clip_obs"),
        (dict(settings=3), "describe no VecNormalize"),
        (dict(returns="x"), "describe no VecNormalize"),
        (dict(statistics=[]), "describe no VecNormalize"),
        (dict(statistics=dict(obs_rms=dict(mean=zeros))), "describe no VecNormalize"),
        (dict(statistics=dict(venv=good)), "not of this environment"),
        (dict(statistics=dict(obs_rms=good | dict(mean=[0.0]))), "not of this environment"),
        (dict(statistics=dict(obs_rms=good | dict(mean=["x"] * 4))), "describe no VecNormalize"),
        (dict(statistics=dict(obs_rms=good | dict(mean=[1e999] * 4))), "must be finite"),
        (dict(statistics=dict(obs_rms=good | dict(var=[-1.0] * 4))), "must be finite, with var >= 0"),
        (dict(statistics=dict(obs_rms=good | dict(count=[1.0]))), "must be finite"),
        (dict(statistics=dict(obs_rms=good | dict(count=0))), "count > 0"),
    ]:
        hostile = with_json(data, lambda plain, change=change: plain["environment"]["normalization"].update(change))
        hostile = with_tensors(hostile, lambda tensors, change=change: drop(tensors, *change))
        with pytest.raises(CheckpointError, match=sentence) as error:
            load_normalization(io.BytesIO(hostile), make_vec_env("CartPole-v1"))
        assert "\n" not in str(error.value)
    for setting, value in (("clip_obs", "x"), ("gamma", -1.0), ("training", 1), ("norm_obs_keys", ["a"]), ("venv", 1)):
        hostile = with_json(
            data,
            lambda plain, setting=setting, value=value: plain["environment"]["normalization"]["settings"].update(
                {setting: value}
            ),
        )
        with pytest.raises(CheckpointError):
            load_normalization(io.BytesIO(hostile), make_vec_env("CartPole-v1"))
    injected = with_json(
        data, lambda plain: plain["environment"]["normalization"].update(statistics=dict(obs_rms=good | dict(copy=1)))
    )
    injected = with_tensors(injected, lambda tensors: drop(tensors, "statistics"))
    assert callable(load_normalization(io.BytesIO(injected), make_vec_env("CartPole-v1")).obs_rms.copy)


def drop(tensors: dict[str, np.ndarray], *parts: str) -> None:
    for name in [name for name in tensors if any(name.startswith(f"environment/normalization/{p}") for p in parts)]:
        del tensors[name]


# --- never half a file ------------------------------------------------------------------------------

SAVE_UNTIL_KILLED = """
import os, random, signal, sys, time
import numpy as np
from sbx_deepspi.saving import format as checkpoint

path, n_kills = sys.argv[1], int(sys.argv[2])
dice = random.Random(0)

def contents(number):
    tensors = {f"state/{i}": np.full(50_000, number, np.float32) for i in range(4)}
    return checkpoint.Checkpoint("Test", {"number": number}, None, tensors)

start = time.perf_counter()
for _ in range(10):
    checkpoint.write(path, contents(0))
one_write = (time.perf_counter() - start) / 10  # on this machine
newest, changes = 0, 0
for kill in range(n_kills):
    inode = os.stat(path).st_ino
    child = os.fork()
    if child == 0:
        for number in range(newest + 1, newest + 10**6):
            checkpoint.write(path, contents(number))
    if kill % 2:  # during the second write or later; otherwise during the first, or before it
        while os.stat(path).st_ino == inode:
            time.sleep(one_write / 10)
    time.sleep(dice.uniform(0, 1.5 * one_write))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = checkpoint.read(path)  # raises where a checksum is wrong
    number = loaded.attributes["number"]
    assert number >= newest, (number, newest)
    assert all((tensor == number).all() for tensor in loaded.tensors.values()), number
    changes += number > newest
    newest = number
print(changes, newest)
"""


def kill_while_it_writes(path: Path, n_kills: int) -> tuple[int, int]:
    """How often what was killed had written something new, and how many writes there were."""
    arguments = [sys.executable, "-W", "ignore", "-c", SAVE_UNTIL_KILLED, str(path), str(n_kills)]
    process = subprocess.run(arguments, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    changes, newest = map(int, process.stdout.split())
    return changes, newest


def test_a_killed_process_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    changes, newest = kill_while_it_writes(tmp_path / "model.zip", 30)
    assert changes >= 15
    assert newest >= 15
    assert list(tmp_path.glob(".model.zip.*.tmp"))  # the kills did come while files were written


@pytest.mark.slow
def test_a_process_killed_300_times_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    changes, newest = kill_while_it_writes(tmp_path / "model.zip", 300)
    assert changes >= 150
    assert newest >= 150
    assert len(list(tmp_path.glob(".model.zip.*.tmp"))) > 20


def test_a_full_disk_keeps_the_previous_checkpoint(model: DeepSPI, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"Could not save .*model.zip .*: the file that was there is as it was"):
            model.save(tmp_path / "model")
        with pytest.raises(OSError, match=r"Could not save .*other.zip .*: nothing was written"):
            model.save(tmp_path / "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before


def test_a_folder_that_cannot_be_written(model: DeepSPI) -> None:
    with pytest.raises(OSError, match=r"Could not save /sys/model.zip \(.*\): nothing was written"):
        model.save("/sys/model")  # where not even root may write


def test_a_folder_that_has_become_read_only_keeps_the_previous_checkpoint(
    model: DeepSPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)  # root may write into any folder, so that none can be made so for a test
    with pytest.raises(OSError, match="Read-only file system"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_folders_that_cannot_be_synced_do_no_harm() -> None:
    descriptor = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(descriptor)
    os.close(descriptor)
    checkpoint.sync_folder(Path("/proc"))


# --- hostile files ----------------------------------------------------------------------------------


class Bomb:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


UNPICKLED: list[str] = []
sys.addaudithook(lambda event, _: UNPICKLED.append(event) if event == "pickle.find_class" else None)


@pytest.fixture
def harmless(tmp_path: Path) -> Iterator[Path]:
    """Nothing is unpickled, and memory does not grow by more than what a few hundred small models need."""
    UNPICKLED.clear()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_memory()
    yield tmp_path / "trace"
    assert not UNPICKLED
    assert not (tmp_path / "trace").exists()
    assert peak_memory() - before < 300_000


def peak_memory() -> int:
    """In kB, since it was last cleared."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def refused_or_correct(data: bytes, model: DeepSPI) -> bool:
    """Whether a file is refused, by one clear sentence; if not, it has to be the model as it was."""
    try:
        loaded = load(data)
    except CheckpointError as error:
        assert str(error)
        assert "\n" not in str(error)
        return True
    assert_same(model, loaded)
    return False


def test_truncated_and_flipped_files(saved: bytes, model: DeepSPI, harmless: Path) -> None:
    dice = random.Random(0)
    truncated = [saved[:length] for length in (0, 1, *dice.sample(range(len(saved)), 98))]
    assert all(refused_or_correct(data, model) for data in truncated)
    flipped = []
    headers = [*range(200), *range(len(saved) - 300, len(saved))]  # zip's own records, where no checksum helps
    for place in [*dice.sample(range(len(saved)), 150), *dice.sample(headers, 100)]:
        data = bytearray(saved)
        data[place] ^= 1 << dice.randrange(8)
        flipped.append(refused_or_correct(bytes(data), model))
    assert sum(flipped) > 150
    assert not all(flipped)  # dates, for one, do no harm


def planted(trace: Path) -> bytes:
    return pickle.dumps(Bomb(trace))


def hostile_archives(saved: bytes, trace: Path) -> Iterator[tuple[str, bytes]]:
    """Files whose archive is wrong, each with a part of the sentence that says so."""
    contents = members(saved)
    bomb = planted(trace)
    for name in contents:
        yield (
            ("cannot|damaged|no checkpoint|does not say" if name != SYSTEM_INFO else "^$"),
            archive_of(contents | {name: bomb}),
        )
    yield "should hold", archive_of(contents | {"extra.pkl": bomb})
    yield "should hold", archive_of(contents | {"../../../evil.pkl": bomb})
    yield "should hold", archive_of({f"../{name}": content for name, content in contents.items()})
    yield "should hold", archive_of({f"/{name}": content for name, content in contents.items()})
    yield "should hold", archive_of({JSON: contents[JSON]})
    yield "pickling format", archive_of(contents | {"_stable_baselines3_version": b"2.9.2"})
    yield "compressed", archive_of(contents, zipfile.ZIP_DEFLATED)
    yield "compressed", archive_of(contents | {TENSORS: bytes(2**28)}, zipfile.ZIP_DEFLATED)
    yield "compressed", archive_of(contents | {JSON: b"[" * 2**26}, zipfile.ZIP_LZMA)
    yield "too many", archive_of(contents | {JSON: b" " * (2 * checkpoint.LARGEST_JSON)})
    yield "damaged", archive_of(contents | {JSON: b"[" * 2**20})
    yield "damaged", archive_of(contents | {JSON: b"9" * 2**20})
    yield "damaged", archive_of(contents | {JSON: b"\xff\xfe"})
    yield "damaged", archive_of(contents | {TENSORS: (2**62).to_bytes(8, "little") + contents[TENSORS][8:]})
    yield "does not say", archive_of(contents | {JSON: b"[]"})
    yield "does not say", archive_of(contents | {JSON: b"{}"})
    yield "damaged", bomb
    twice = io.BytesIO(saved)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(twice, "a") as archive:
        archive.writestr(JSON, contents[JSON])
    yield "should hold", twice.getvalue()


def test_hostile_archives(saved: bytes, model: DeepSPI, harmless: Path) -> None:
    for sentence, data in hostile_archives(saved, harmless):
        if sentence == "^$":
            assert_same(model, load(data))  # nobody reads it but a user who asks for it
            continue
        with pytest.raises(CheckpointError, match=sentence):
            load(data)


def test_a_newer_format_is_refused(saved: bytes) -> None:
    with pytest.raises(CheckpointError, match="format version 4, this sbx-deepspi reads up to 3: install a newer one"):
        load(with_json(saved, lambda plain: plain.update(version=4)))
    for version in ("1", None, 0, -1, 1.5, [1]):
        with pytest.raises(CheckpointError, match="does not say that it is one"):
            load(with_json(saved, lambda plain, version=version: plain.update(version=version)))


def test_an_older_format_is_refused(saved: bytes, tmp_path: Path) -> None:
    data = with_json(saved, lambda plain: plain.update(version=1))
    (tmp_path / "old.zip").write_bytes(data)
    sentence = r"^The checkpoint was saved by an earlier development version of sbx-deepspi \(format 1\), which .*\.$"
    model = load(saved)
    for read in (
        load,
        lambda _: model.set_parameters(tmp_path / "old"),
        lambda _: MlpPolicy.load(tmp_path / "old.zip"),
    ):
        with pytest.raises(CheckpointError, match=sentence) as error:
            read(data)
        assert "\n" not in str(error.value)
    assert_same(model, load(saved))


def test_files_of_sb3_are_refused(model: DeepSPI, harmless: Path) -> None:
    file = io.BytesIO()
    save_to_zip_file(file, data={"policy_class": Bomb(harmless), "gamma": 0.9}, params={})
    UNPICKLED.clear()
    for trust in (False, True):
        with pytest.raises(CheckpointError, match="Stable-Baselines3's pickling format"):
            load(file.getvalue(), trust=trust)


def evil_values(trace: Path) -> list[Any]:
    return [
        {"$pickle": base64.b64encode(planted(trace)).decode()},
        {":serialized:": base64.b64encode(planted(trace)).decode(), ":type:": "x"},
        {"$named": "os.system"},
        {"$named": "jax.nn.initializers"},
        {"$object": ["subprocess.Popen", {"args": ["touch", str(trace)]}]},
        {"$object": ["gymnasium.spaces.box.Box", {"low": 0, "high": 1, "shape": [10**6, 10**6], "dtype": "float32"}]},
        {"$object": ["stable_baselines3.common.utils.FloatSchedule", {"value_schedule": {"$named": "builtins.exec"}}]},
        {"$object": ["gymnasium.spaces.box.Box", {"low": 0, "high": 1, "shape": [10**4, 10**4], "dtype": "float32"}]},
        {"$object": ["gymnasium.spaces.box.Box", {"low": 0, "high": 1, "dtype": "float32"}]},
        {"$object": ["gymnasium.spaces.box.Box", {"low": 0, "high": 1}]},
        {"$object": ["gymnasium.spaces.discrete.Discrete", {"n": 2, "start": 0, "seed": 1}]},
        {"$array": "../../etc/passwd"},
        {"$dtype": "object"},
        {"$deque": [-1, []]},
        {"$unknown": 1},
        {"$array": "key", "$jax": "key"},
    ]


def test_hostile_values(saved: bytes, harmless: Path) -> None:
    names = list(json.loads(members(saved)[JSON])["attributes"])
    for i, value in enumerate(evil_values(harmless)):
        for name in [*names[i::3], "brand_new"]:
            if isinstance(value, dict) and ":serialized:" in value and name not in ("gamma", "policy_class", "n_steps"):
                continue  # to us a dictionary like any other
            with pytest.raises(CheckpointError, match=f"{name}|CartPole|must|describe") as error:
                load(with_attribute(saved, name, value))
            assert "\n" not in str(error.value)


def test_a_box_is_made_from_its_bounds_alone(saved: bytes) -> None:
    """Its shape takes a few bytes in a file and any number of them in memory."""
    box = {"low": 0, "high": 1, "shape": [10**4, 10**4], "dtype": {"$dtype": "float32"}}
    with pytest.raises(
        CheckpointError, match=r"must make a gymnasium\.spaces\.box\.Box from low, high, dtype, and nothing"
    ):
        load(with_attribute(saved, "note", {"$object": ["gymnasium.spaces.box.Box", box]}))
    with pytest.raises(CheckpointError, match=r"must give a gymnasium\.spaces\.box\.Box its dtype by name"):
        box = {"low": 0, "high": 1, "dtype": "float32"}
        load(with_attribute(saved, "note", {"$object": ["gymnasium.spaces.box.Box", box]}))


def test_a_tensor_takes_its_memory_once(saved: bytes) -> None:
    data = with_tensors(saved, lambda tensors: tensors.update({"attributes/note": np.zeros(10)}))
    for tag in ("$array", "$jax", "$scalar"):
        with pytest.raises(CheckpointError, match="note of the checkpoint cannot be read: 'attributes/note'"):
            references = [{tag: "attributes/note"}] * 2
            load(with_json(data, lambda plain, references=references: plain["attributes"].update(note=references)))
    with pytest.raises(CheckpointError, match="tensor 'attributes/note' is not used by anything"):
        load(data)
    load(data, custom_objects={"note": 1})  # stands in for whatever the file has under this name


def test_sentences_about_a_file_are_short_and_printable(saved: bytes) -> None:
    for data in (
        with_json(saved, lambda plain: plain.update(version=10**4000)),
        with_json(saved, lambda plain: plain.update(written_by="x" * 10**6)),
        with_attribute(saved, "\x1b[2J" * 10**5, {"$unknown": 1}),
        with_attribute(saved, "note", {"$named": "\x1b[2J" * 10**5}),
        with_tensors(saved, lambda tensors: tensors.update({"state/\x1b" + "x" * 10**5: np.zeros(1)})),
        with_tensors(saved, lambda tensors: tensors.update({"\x1b" + "x" * 10**5: np.zeros(1)})),
    ):
        with pytest.raises(CheckpointError) as error:
            load(data)
        assert len(str(error.value)) < 400
        assert str(error.value).isprintable()


HUGE = 10**12
NOT_A_MODEL = {
    "_last_episode_starts": ["x", [True]],
    "policy_kwargs": [
        dict(net_arch=[HUGE]), dict(net_arch=[1] * 10**5), dict(net_arch={"pi": "abc"}), dict(n_components=HUGE),
        dict(features_extractor_kwargs=dict(features_dim=HUGE)), dict(lipschitz_constant="x"), dict(unknown=1), [], 3,
        dict(activation_fn={"$named": "optax.adam"}), dict(optimizer_class={"$named": "jax.nn.relu"}),
        dict(optimizer_kwargs=dict(eps="x")), dict(optimizer_kwargs=dict(nonsense=1)),
    ],
    "action_space": [
        {"$object": ["gymnasium.spaces.discrete.Discrete", {"n": HUGE, "start": 0}]},
        {"$object": ["gymnasium.spaces.discrete.Discrete", {"n": 3, "start": 0}]},
        {"$object": ["gymnasium.spaces.multi_binary.MultiBinary", {"n": HUGE}]},
        {"$object": ["gymnasium.spaces.multi_binary.MultiBinary", {"n": 3}]},
        {"$object": ["gymnasium.spaces.discrete.Discrete", {"n": -1, "start": 0}]}, None, 1, "Discrete(2)",
    ],
    "observation_space": [
        {"$object": ["gymnasium.spaces.discrete.Discrete", {"n": 3, "start": 0}]}, None,
        {"$object": ["gymnasium.spaces.box.Box", {"low": -1, "high": 1, "dtype": {"$dtype": "float32"}}]},
        {"$object": ["gymnasium.spaces.box.Box", {"low": 2, "high": 1, "dtype": {"$dtype": "float32"}}]},
    ],
    "policy_class": [None, "MlpPolicy", {"$named": "sbx_deepspi.sb3.policies.CnnPolicy"}, {"$named": "jax.nn.relu"}],
    "n_steps": [HUGE**2, -1, 0, "8", 1.5, None], "n_envs": [HUGE**2, -1, "1", [1]], "batch_size": [0, "8", {}],
    "target_kl": ["x", {"$float": "nan"}, [], {"$named": "jax.nn.relu"}],
    "gradient_penalty_coef": ["x", {"$float": "inf"}, -1.0],
    "ep_info_buffer": [3, [], {}], "ep_success_buffer": ["x"],
    "_stats_window_size": [0, -1, "x", 1.5, HUGE, HUGE**2, None], "_updates_since_certificate": ["x", None],
    "certificate_freq": [0, "x", 1.5], "neighbourhood": ["x", None], "world_model": [False, 1, "x", None],
    "gamma": [2.0, "x", {"$float": "nan"}, {}, True + 1], "gae_lambda": [-1, []], "max_grad_norm": [-1.0, "x"],
    "ent_coef": ["x", None, [], {"$named": "jax.nn.relu"}, {"$float": "inf"}],
    "vf_coef": ["x"], "clip_range": [-1.0, "x"],
    "clip_range_vf": ["x", -1.0, {"$float": "nan"}],
    "learning_rate": ["x", None, {"$named": "torch.nn.Tanh"}, []], "key": [3, {"$array": "attributes/_last_obs"}, None],
    "seed": ["x", -1, 2**80], "num_timesteps": ["x", None, {"$named": "jax.nn.relu"}],
    "reward_loss_coef": [2, "x"],
    "learn": [1], "save": [None], "__class__": ["x"], "logger": [0], "env": [None], "policy": [0], "_logger": [0],
    "update": [None, {"$named": "jax.nn.relu"}], "state": [0], "certificate": [None], "certifies_each_update": [True],
    "episodes": [0], "_set_by_constructor": [[]], "interruption": [0], "policy_aliases": [{}],
}  # fmt: skip


def test_numbers_that_make_no_model(saved: bytes, harmless: Path) -> None:
    """All checksums are right; nothing of the sizes claimed is allocated."""
    accepted = []
    for name, values in NOT_A_MODEL.items():
        for value in values:
            try:
                load(with_attribute(saved, name, value))
                accepted.append((name, value))
            except CheckpointError as error:
                assert "\n" not in str(error), (name, value)
    assert not accepted


def test_an_optimiser_that_is_not_finite_is_refused(saved: bytes, model: DeepSPI) -> None:
    state = model.get_parameters()
    (name,) = (name for name in state["policy.optimizer"] if name.endswith("nu/critic/Dense_0/bias"))
    poisoned = np.full_like(state["policy.optimizer"][name], np.nan)
    with pytest.raises(ValueError, match=r"The optimiser's '.*nu/critic/Dense_0/bias' is not finite"):
        model.set_parameters({"policy": {}, "policy.optimizer": {name: poisoned}}, exact_match=False)


def test_what_pickle_cannot_take_is_named(model: DeepSPI, tmp_path: Path) -> None:
    model.lock = threading.Lock()
    try:
        with pytest.warns(UserWarning, match=r"lock = .* is left out"):
            model.save(tmp_path / "model", pickle=True)
    finally:
        del model.lock


def test_attributes_that_are_missing(saved: bytes, model: DeepSPI) -> None:
    for name in json.loads(members(saved)[JSON])["attributes"]:
        data = with_json(saved, lambda plain, name=name: plain["attributes"].pop(name))
        if name in ("policy_class", "policy_kwargs", "observation_space", "action_space", "n_envs"):
            with pytest.raises(CheckpointError):
                load(data)


def test_hostile_environments(saved: bytes, harmless: Path) -> None:
    """What a file says of the environment is only believed where it is asked for."""
    for state in (3, [], {"episodes": 1}, {"episodes": {"states": [1]}, "normalization": None}, *evil_values(harmless)):
        data = with_json(saved, lambda plain, state=state: plain.update(environment=state))
        with pytest.raises(CheckpointError, match="environment"):
            load(data, env=make_vec_env("CartPole-v1"), force_reset=False)
    with pytest.raises(CheckpointError, match="observation must be numbers of shape"):
        other = make_vec_env("CartPole-v1", 2)
        load(saved, env=other, force_reset=False)


def test_a_rollout_takes_memory_when_learning_starts(saved: bytes) -> None:
    saved = with_tensors(saved, lambda tensors: tensors.update({"state/episodes/steps": np.zeros(16, np.int32)}))
    loaded = load(with_json(saved, lambda plain: plain["attributes"].update(n_steps=2**26, n_envs=2**4)))
    assert "rollout_buffer" not in vars(loaded)
    with pytest.raises(CheckpointError, match=r"less than 2\^31 transitions, but got n_steps=134217728, n_envs=16"):
        load(with_json(saved, lambda plain: plain["attributes"].update(n_steps=2**27, n_envs=2**4)))


def test_parameters_that_are_not_finite_are_refused(saved: bytes) -> None:
    name = "encoder/Dense_0/kernel"
    for value in (np.nan, np.inf):
        path = f"state/learner/parameters/{name}"
        data = with_tensors(saved, lambda tensors, path=path, value=value: poison(tensors, path, value))
        with pytest.raises(CheckpointError, match=f"The parameter '{name}' is not finite"):
            load(data)
    model = load(saved)
    parameters = model.get_parameters()
    poison(parameters["policy"], name, np.nan)
    with pytest.raises(ValueError, match=f"The parameter '{name}' is not finite"):
        model.set_parameters(parameters)
    assert_same(model, load(saved))


def poison(tensors: dict[str, np.ndarray], name: str, value: float) -> None:
    tensors[name] = np.full_like(tensors[name], value)


def test_tensors_that_do_not_fit(saved: bytes, model: DeepSPI, harmless: Path) -> None:
    tensors = safetensors.numpy.load(members(saved)[TENSORS])
    names = [name for name in tensors if name.startswith(("state/learner/", "prediction_key"))]
    assert len(names) == N_TENSORS
    for name in names:
        for change in wrong_tensors(name):
            with pytest.raises(
                CheckpointError, match=name.removeprefix("state/learner/parameters/").split("_state/")[-1]
            ) as error:
                checkpoint_fits(with_tensors(saved, change), model)
            assert "\n" not in str(error.value)
    for name in ("state/learner/more", "state/learner/parameters/more", "state/more", "prediction_key/more"):
        with pytest.raises(CheckpointError, match="not among them"):
            load(with_tensors(saved, lambda tensors, name=name: tensors.update({name: np.zeros(1)})))


N_TENSORS = 79
WRONG_DTYPE = {"f": np.float64, "i": np.int64, "u": np.int32}


def wrong_tensors(name: str) -> list[Callable[[dict[str, np.ndarray]], Any]]:
    """Changes that leave a tensor out, or give it another dtype or shape."""
    return [
        lambda tensors: tensors.pop(name),
        lambda tensors: tensors.update({name: np.asarray(tensors[name], WRONG_DTYPE[tensors[name].dtype.kind])}),
        lambda tensors: tensors.update({name: np.full(tensors[name].shape, np.nan, np.float32)}),
        lambda tensors: tensors.update({name: np.zeros((*tensors[name].shape, 2), tensors[name].dtype)}),
    ]


def checkpoint_fits(data: bytes, model: DeepSPI) -> None:
    """What ``load`` compares, without tracing the networks again for each file."""
    tensors = checkpoint.from_bytes(data, False, {}).tensors
    shapes = {"state": {"learner": model.policy.learner}, "prediction_key": model.policy.key}
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(("state/learner/", "prediction_key"))}
    checkpoint.unflatten(own, shapes)
    checkpoint.finite(
        checkpoint.subtree(own, "state/learner/parameters/"), checkpoint.subtree(own, "state/learner/optimizer_state/")
    )


def test_a_trainers_state_that_does_not_fit(saved: bytes, harmless: Path) -> None:
    def replaced(name: str, value: Any) -> Callable[[dict[str, np.ndarray]], Any]:
        return lambda tensors: tensors.update({name: value})

    names = "state/key", "state/n_epochs", "state/episodes/steps", "state/episodes/lengths", "state/episodes/n_ended"
    changes = [(name, change) for name in names for change in wrong_tensors(name)]
    for name in names[1:]:
        changes.append((name, lambda tensors, name=name: tensors.update({name: np.asarray(-1 - tensors[name])})))
    changes += [
        ("state/episodes/lengths", replaced("state/episodes/lengths", np.zeros(0, np.int32))),
        ("state/episodes/lengths", replaced("state/episodes/lengths", np.zeros(10**6, np.int32))),
        ("state/episodes/steps", replaced("state/episodes/steps", np.zeros(10**6, np.int32))),
        ("state/episodes/steps", replaced("state/episodes/steps", np.zeros(0, np.int32))),
        ("state/key", replaced("state/key", np.zeros(4, np.uint32))),
    ]
    for i, (name, change) in enumerate(changes):
        data = with_tensors(saved, change)
        for env in (None, make_vec_env("CartPole-v1", 2)) if i % 4 == 0 else (None,):
            with pytest.raises(CheckpointError, match=name) as error:
                load(data, env=env)
            assert "\n" not in str(error.value)
