"""
A file format for models that holds no code, and writing it so that there is never half a file.

A checkpoint is a zip archive, uncompressed, of three members: ``data``, as SB3 calls it (JSON: which class wrote it,
its attributes, the environment's state), ``tensors.safetensors`` (networks, optimiser and every other array) and
``system_info.txt``. In the JSON, what is not plain is an object with one key that begins with ``$``; functions and
classes are names from a fixed list.
"""

import base64
import contextlib
import errno
import importlib
import inspect
import io
import json
import math
import os
import pathlib
import uuid
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from gymnasium import spaces
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.utils import get_system_info

FORMAT = "sbx-deepspi checkpoint"
VERSION = 3
JSON, TENSORS, SYSTEM_INFO = "data", "tensors.safetensors", "system_info.txt"
ATTRIBUTES, STATE = "attributes/", ("state/", "prediction_key")  # how names of tensors begin
SB3_VERSION = "_stable_baselines3_version"  # a member that only SB3's own files have
DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
"""What safetensors writes, and reads back, as NumPy arrays."""
LARGEST_JSON = 2**24  # bytes; that of a model has a few thousand, and 80 for each episode in its window

NAMED = {
    "jax.nn": (
        "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu",
        "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "sparse_plus",
        "squareplus", "swish", "tanh",
    ),
    "optax": (
        "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamaxw", "adamw", "amsgrad", "fromage", "lamb", "lars",
        "lion", "nadam", "nadamw", "novograd", "radam", "rmsprop", "rprop", "sgd", "sm3", "yogi",
    ),
    "torch.nn": (
        "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish",
        "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh",
    ),
    "stable_baselines3.common.torch_layers": ("CombinedExtractor", "FlattenExtractor", "NatureCNN"),
    "stable_baselines3.common.buffers": ("DictRolloutBuffer", "RolloutBuffer"),
    "sbx.common.jax_layers": ("NatureCNN",),
    "sbx_deepspi.networks.encoders": ("exact_gelu",),
    "sbx_deepspi.sb3.grid": ("GridPolicy",),
    "sbx_deepspi.sb3.policies": ("CnnPolicy", "MlpPolicy", "MultiInputPolicy"),
}  # fmt: skip
"""Functions and classes that are stored by name."""

DISCRETE = "gymnasium.spaces.discrete.Discrete"
CONSTRUCTED = {
    "gymnasium.spaces.box.Box": ("low", "high", "dtype"),
    "gymnasium.spaces.dict.Dict": ("spaces",),
    # with a dtype since Gymnasium 1.4: files go from one version to the other
    DISCRETE: tuple(name for name in ("n", "start", "dtype") if name in inspect.signature(spaces.Discrete).parameters),
    "gymnasium.spaces.multi_binary.MultiBinary": ("n",),
    "gymnasium.spaces.multi_discrete.MultiDiscrete": ("nvec", "dtype", "start"),
    "rl_zoo3.utils.SimpleLinearSchedule": ("initial_value",),
    "stable_baselines3.common.utils.ConstantSchedule": ("val",),
    "stable_baselines3.common.utils.FloatSchedule": ("value_schedule",),
    "stable_baselines3.common.utils.LinearSchedule": ("start", "end", "end_fraction"),
}
"""Classes whose instances are stored by name and the arguments that make them anew."""


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, or with what should be saved in one, in one sentence."""


@dataclass(frozen=True)
class Missing:
    """
    Stands for what a file could not hold, such as a function without a name. Where it is called, an error asks for it.

    :param name: what it was called, as a path
    :param description: what it was
    """

    name: str
    description: str

    def __call__(self, *args: Any) -> Any:
        raise CheckpointError(self.request)

    @property
    def request(self) -> str:
        """
        :return: one sentence that asks for it
        """
        first, *rest = self.name.split("/")
        what = first + "".join(f"[{part!r}]" for part in rest)
        return f"The file could not hold {what} = {self.description}: give it anew, as in load(..., {first}=...)."


@dataclass(frozen=True)
class Checkpoint:
    """
    What a file holds.

    :param written_by: name of the class that wrote it
    :param attributes: of the model, by name
    :param environment: state of the environment, see :mod:`sbx_deepspi.saving.environment`; ``None``: not known
    :param tensors: networks, optimiser and keys, by name
    :param system_info: of the machine that wrote it
    """

    written_by: str
    attributes: dict[str, Any]
    environment: Any
    tensors: dict[str, np.ndarray]
    system_info: str = ""


# --- files ------------------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """
    Write a file so that, whatever happens, there is the old one or the new one, whole.

    A process that is killed meanwhile may leave a hidden ``.<name>.<random>.tmp`` beside it.

    :param path: of the file; its folder must exist
    :param data: what it is to hold
    :raises OSError: it could not be written; a file that was there is as it was
    """
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        kept = "the file that was there is as it was" if target.exists() else "nothing was written"
        raise OSError(error.errno, f"Could not save {target} ({error.strerror}): {kept}") from error
    sync_folder(target.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """
    Let the names in a folder survive a power cut, where folders can be opened (not on Windows) and synced (not on
    some network drives).

    :param folder: in which a file was renamed
    :raises OSError: it could not be synced; the file is there all the same
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            message = f"The new file in {folder} is in place, but may not survive a power cut ({error.strerror})"
            raise OSError(error.errno, message) from error


def save_path(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    """
    SB3's rules for where a file goes: a suffix where there is none, not onto a folder, missing folders are made.

    :param path: as the user gave it
    :param suffix: without the dot; ``""``: none
    :return: where to write
    """
    path = pathlib.Path(path)
    if path.suffix == "" and suffix:
        path = pathlib.Path(f"{path}.{suffix}")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=4)
        path = pathlib.Path(f"{path}_2")
    if not path.parent.exists():
        warnings.warn(f"Path '{path.parent}' does not exist. Will create it.", stacklevel=4)
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(
    file: str | os.PathLike[str] | BinaryIO, checkpoint: Checkpoint, pickle: bool = False, suffix: str = ""
) -> list[Missing]:
    """
    Write a checkpoint: atomically to a path, or into an open file. What has no plain form is left out.

    :param file: path, or a file open for writing
    :param checkpoint: what to write
    :param pickle: pickle what has no plain form; such a file runs code when it is read, and so needs ``trust=True``
    :param suffix: to add to a path that has none
    :return: what was left out
    :raises CheckpointError: it is too much, or two arrays would have the same name
    :raises OSError: it could not be written; a file that was there is as it was
    """
    data, missing = to_bytes(checkpoint, pickle)
    if isinstance(file, str | os.PathLike):
        write_atomically(save_path(file, suffix), data)
    else:
        open_path(file, "w").write(data)  # type: ignore[arg-type]
    return missing


def read(
    file: str | os.PathLike[str] | BinaryIO,
    trust: bool = False,
    custom_objects: dict[str, Any] | None = None,
    suffix: str = "",
) -> Checkpoint:
    """
    Read a checkpoint without running anything that is in it.

    :param file: path, or a file open for reading
    :param trust: unpickle what is pickled in it, which may run any code
    :param custom_objects: attributes to take from here instead of from the file
    :param suffix: to try where there is no file at a path
    :return: what the file holds
    :raises CheckpointError: it is no checkpoint, is damaged or newer, or holds something pickled
    """
    opened = open_path(file, "r", suffix=suffix)  # type: ignore[arg-type]
    try:
        opened.seek(0)  # a file that was just written may be read, as SB3 allows
        data = opened.read()
    finally:
        if isinstance(file, str | os.PathLike):
            opened.close()
    return from_bytes(data, trust, custom_objects or {})


def to_bytes(checkpoint: Checkpoint, pickle: bool = False) -> tuple[bytes, list[Missing]]:
    """
    :param checkpoint: what to write
    :param pickle: pickle what has no plain form
    :return: the content of a file, and what was left out of it
    :raises CheckpointError: it is too much, or two arrays would have the same name
    """
    tensors = dict(checkpoint.tensors)
    missing: list[Missing] = []
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": checkpoint.written_by,
        "attributes": {
            name: _encode(value, ATTRIBUTES + name, tensors, pickle, missing)
            for name, value in checkpoint.attributes.items()
        },
        "environment": _encode(checkpoint.environment, "environment", tensors, pickle, missing),
    }
    for name, array in tensors.items():
        if array.dtype.name not in DTYPES:
            raise CheckpointError(
                f"{name} is of dtype {array.dtype}, which a checkpoint cannot hold: use one of {', '.join(DTYPES)}."
            )
    members = {
        JSON: json.dumps(plain, indent=1, allow_nan=False).encode(),
        TENSORS: safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in tensors.items()}),
        SYSTEM_INFO: get_system_info(print_info=False)[1].encode(),
    }
    if len(members[JSON]) > LARGEST_JSON:
        raise CheckpointError(
            f"The model's attributes would take {len(members[JSON]):,} bytes of JSON, of which {LARGEST_JSON:,} are "
            "allowed: keep large lists as NumPy arrays."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue(), missing


def from_bytes(data: bytes, trust: bool, custom_objects: dict[str, Any]) -> Checkpoint:
    """
    :param data: the content of a file
    :param trust: unpickle what is pickled in it
    :param custom_objects: attributes to take from here instead of from the file
    :return: what the file holds
    :raises CheckpointError: it is no checkpoint, is damaged or newer, or holds something pickled
    """
    members = _members(data)
    try:
        plain = json.loads(members[JSON])
        tensors = safetensors.numpy.load(members[TENSORS])
    except (ValueError, RecursionError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"The checkpoint is damaged: {_one_line(error)}.") from error
    version = plain.get("version") if isinstance(plain, dict) and plain.get("format") == FORMAT else None
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"The file is no checkpoint: its member {JSON!r} does not say that it is one.")
    if version > VERSION:
        raise CheckpointError(
            f"The checkpoint has format version {_printable(str(version))}, this sbx-deepspi reads up to {VERSION}: "
            "install a newer one."
        )

    if version < VERSION:
        raise CheckpointError(
            f"The checkpoint was saved by an earlier development version of sbx-deepspi (format {version}), which this "
            "one does not read: train again, or load it with the version that saved it."
        )

    attributes, class_name = plain.get("attributes"), plain.get("written_by")
    if not isinstance(attributes, dict) or not (isinstance(class_name, str) and class_name.isidentifier()):
        raise CheckpointError("The checkpoint is damaged: it has no attributes, or no class that wrote it.")
    decoded = {
        name: custom_objects[name] if name in custom_objects else _decoded(value, name, tensors, trust)
        for name, value in attributes.items()
    }
    environment = _decoded(plain.get("environment"), "environment", tensors, trust)
    not_wanted = tuple(f"{ATTRIBUTES}{name}" for name in custom_objects)
    unused = [name for name in tensors if not name.startswith((*STATE, *not_wanted))]
    if unused:
        raise CheckpointError(f"The checkpoint's tensor {_printable(unused[0])!r} is not used by anything in it.")
    return Checkpoint(
        written_by=class_name,
        attributes=decoded,
        environment=environment,
        tensors={name: array for name, array in tensors.items() if name.startswith(STATE)},
        system_info="\n".join(
            _printable(line, 200) for line in members[SYSTEM_INFO].decode(errors="replace").splitlines()
        ),
    )


def _members(data: bytes) -> dict[str, bytes]:
    """The members of the archive. They are not compressed, so nothing here is larger than the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            names = sorted(info.filename for info in infos)
            if SB3_VERSION in names:
                raise CheckpointError(
                    "The file is in Stable-Baselines3's pickling format, which runs code as it is read: "
                    "this version of sbx-deepspi does not read it."
                )
            if names != sorted((JSON, TENSORS, SYSTEM_INFO)):
                raise CheckpointError(f"The file is no checkpoint: it should hold {JSON}, {TENSORS} and {SYSTEM_INFO}.")
            for info in infos:
                limit = LARGEST_JSON if info.filename != TENSORS else len(data)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise CheckpointError(f"The checkpoint's {info.filename} is compressed, which none of ours is.")
                if info.file_size > limit:
                    raise CheckpointError(
                        f"The checkpoint's {info.filename} claims {info.file_size:,} bytes: too many."
                    )
            return {info.filename: archive.read(info) for info in infos}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile has many: BadZipFile (also for a wrong checksum), struct.error, OverflowError
        raise CheckpointError(f"The checkpoint is damaged: {_one_line(error)}.") from error


def _one_line(error: BaseException) -> str:
    return _printable(" ".join(str(error).split()), 200) or type(error).__name__


def _printable(text: str, length: int = 80) -> str:
    """What a file says may be long, and may try to speak to the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:length])


def written_by(class_name: str, checkpoint: Checkpoint) -> None:
    """
    :param class_name: that is to load it
    :param checkpoint: what a file held
    :raises CheckpointError: another class wrote it
    """
    if checkpoint.written_by != class_name:
        other = _printable(checkpoint.written_by)
        raise CheckpointError(
            f"The checkpoint was saved by {other}: load it with {other}.load, not with {class_name}.load."
        )


@contextlib.contextmanager
def building(class_name: str) -> Iterator[None]:
    """
    Whatever goes wrong inside, where what a checkpoint says is believed for the first time, is one kind of error.

    :param class_name: of what is built
    :raises CheckpointError: something went wrong
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint and the arguments describe no {class_name} that can be built: {_one_line(error)}"
        ) from error


# --- values -----------------------------------------------------------------------------------------


def _encode(value: Any, name: str, tensors: dict[str, np.ndarray], pickle: bool, missing: list[Missing]) -> Any:
    """
    A value as JSON. Arrays go to the tensors under the value's name.

    :param value: what to encode
    :param name: what it is called, as a path
    :param tensors: gets the arrays
    :param pickle: pickle what has no plain form
    :param missing: gets what has no plain form otherwise
    :return: what JSON can hold
    :raises CheckpointError: two arrays would have the same name
    """

    def inner(item: Any, key: Any) -> Any:
        return _encode(item, f"{name}/{key}", tensors, pickle, missing)

    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [inner(item, i) for i, item in enumerate(value)]
    if kind is tuple:
        return {"$tuple": [inner(item, i) for i, item in enumerate(value)]}
    if kind is deque:
        return {"$deque": [value.maxlen, [inner(item, i) for i, item in enumerate(value)]]}
    if kind in (dict, OrderedDict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: inner(item, key) for key, item in value.items()}
        return {"$dict": [[inner(key, f"key {i}"), inner(value[key], i)] for i, key in enumerate(value)]}
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype.name in DTYPES:
        if name in tensors:
            raise CheckpointError(f"Two arrays would be called {name!r} in the file: use keys without '/'.")
        tag = "$jax" if isinstance(value, jax.Array) else "$array" if isinstance(value, np.ndarray) else "$scalar"
        tensors[name] = np.asarray(value)
        return {tag: name}
    if isinstance(value, np.dtype) and value.name in DTYPES:
        return {"$dtype": value.name}
    if isinstance(value, pathlib.Path):
        return {"$path": str(value)}
    if callable(value) and (known_as := _known_as(value)):
        return {"$named": known_as}
    # a subclass of a space is saved as that space; other subclasses may do something else
    kinds = kind.__mro__ if isinstance(value, spaces.Space) else (kind,)
    class_name = next((name for name in map(_full_name, kinds) if name in CONSTRUCTED), None)
    if class_name is not None:
        arguments = {argument: inner(getattr(value, argument), argument) for argument in CONSTRUCTED[class_name]}
        return {"$object": [class_name, arguments]}
    if pickle:
        with contextlib.suppress(Exception):  # of many kinds; what cannot be pickled either is left out
            return {"$pickle": base64.b64encode(cloudpickle.dumps(value)).decode()}
    if not isinstance(value, Missing):
        value = Missing(name.removeprefix(ATTRIBUTES), _printable(" ".join(repr(value).split()), 200))
    missing.append(value)
    return {"$missing": [value.name, value.description]}


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def left_out(value: Any, name: str) -> list[Missing]:
    """
    :param value: an attribute
    :param name: of the attribute
    :return: what a file cannot hold of it
    """
    missing: list[Missing] = []
    _encode(value, ATTRIBUTES + name, {}, False, missing)
    return missing


def missing_in(value: Any) -> list[Missing]:
    """
    :param value: read from a file
    :return: what the file could not hold of it
    """
    if isinstance(value, Missing):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, deque)) else ()
    return [missing for part in parts for missing in missing_in(part)]


def _known_as(value: Any) -> str | None:
    for module, names in NAMED.items():
        for name in names:
            if getattr(importlib.import_module(module), name) is value:
                return f"{module}.{name}"
    return None


@dataclass(frozen=True)
class Named:
    """
    Stands for a function or class of :data:`NAMED` in a pickle: many of JAX's functions cannot be pickled.

    :param name: with its module
    """

    name: str


def to_names(value: Any) -> Any:
    """
    :param value: of an attribute
    :return: the same with :class:`Named` in place of functions that have a name, also inside dictionaries
    """
    if type(value) is dict:
        return {key: to_names(item) for key, item in value.items()}
    known_as = _known_as(value) if callable(value) else None
    return value if known_as is None else Named(known_as)


def from_names(value: Any) -> Any:
    """
    :param value: what :func:`to_names` returned
    :return: what it was given
    """
    if type(value) is dict:
        return {key: from_names(item) for key, item in value.items()}
    if not isinstance(value, Named):
        return value
    module, _, name = value.name.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _decoded(value: Any, name: str, tensors: dict[str, np.ndarray], trust: bool) -> Any:
    """As :func:`_decode`, with one kind of error for whatever a file may hold."""
    try:
        return _decode(value, tensors, trust)
    except CheckpointError as error:
        raise CheckpointError(f"{_printable(name)} of the checkpoint {error}") from None
    except Exception as error:
        raise CheckpointError(f"{_printable(name)} of the checkpoint cannot be read: {_one_line(error)}.") from error


def _decode(value: Any, tensors: dict[str, np.ndarray], trust: bool) -> Any:
    """
    The value that :func:`_encode` turned into JSON.

    :param value: from the JSON
    :param tensors: from the file; loses those that the value names, so that each takes its memory once
    :param trust: unpickle
    :return: the value
    :raises CheckpointError: it is pickled, or its name is not on the lists
    """

    def inner(item: Any) -> Any:
        return _decode(item, tensors, trust)

    if isinstance(value, list):
        return [inner(item) for item in value]
    if not isinstance(value, dict):
        return value
    tags = [key for key in value if key.startswith("$")]
    if not tags:
        return {key: inner(item) for key, item in value.items()}
    ((tag, content),) = value.items()
    match tag:
        case "$float":
            return float(content)
        case "$tuple":
            return tuple(inner(item) for item in content)
        case "$deque":
            maxlen, items = content
            return deque((inner(item) for item in items), maxlen)
        case "$dict":
            return {inner(key): inner(item) for key, item in content}
        case "$array":
            return tensors.pop(content).copy()
        case "$jax":
            return jnp.asarray(tensors.pop(content))
        case "$scalar":
            return tensors.pop(content)[()]
        case "$dtype":
            if content in DTYPES:
                return np.dtype(content)
        case "$missing":
            of_what, description = content
            return Missing(_printable(str(of_what)), _printable(str(description), 200))
        case "$path":
            return pathlib.Path(content)
        case "$named":
            module, _, function = content.rpartition(".")
            if function in NAMED.get(module, ()):
                return getattr(importlib.import_module(module), function)
        case "$object":
            class_name, arguments = content
            if class_name in CONSTRUCTED:
                return _construct(class_name, inner(arguments))
        case "$pickle":
            if trust:
                return cloudpickle.loads(base64.b64decode(content))
            raise CheckpointError(
                "is pickled, so that reading it could run any code: pass it in custom_objects, or, if you know who "
                "wrote the file, load with trust=True."
            )
    raise CheckpointError(f"names {_printable(str(content))!r}, which is not among what may be stored by name.")


def _construct(class_name: str, arguments: dict[str, Any]) -> Any:
    # a Box of any size can be had for a few bytes that name its shape
    if class_name == DISCRETE:
        arguments = {"dtype": np.dtype(np.int64)} | arguments
        if "dtype" not in CONSTRUCTED[DISCRETE]:
            del arguments["dtype"]
    if arguments.keys() != set(CONSTRUCTED[class_name]):
        raise CheckpointError(f"must make a {class_name} from {', '.join(CONSTRUCTED[class_name])}, and nothing else.")
    if "dtype" in arguments and not isinstance(arguments["dtype"], np.dtype):
        raise CheckpointError(f"must give a {class_name} its dtype by name.")
    module, _, class_ = class_name.rpartition(".")
    return getattr(importlib.import_module(module), class_)(**arguments)


# --- trees of arrays --------------------------------------------------------------------------------


def flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """
    :param tree: of JAX arrays
    :param prefix: of every name
    :return: its leaves as NumPy arrays, by their path in the tree
    """
    # a leaf may still be a Python number, whose dtype is JAX's to choose
    leaves = jax.device_get(jax.tree.map(jnp.asarray, tree))
    return {prefix + name: np.asarray(leaf) for name, leaf in _named_leaves(leaves)}


def unflatten(tensors: dict[str, np.ndarray], like: Any, prefix: str = "") -> Any:
    """
    The other way round, into a tree that is known already: nothing is allocated.

    :param tensors: arrays by name
    :param like: a tree of arrays, or of their shapes and dtypes
    :param prefix: of every name
    :return: the tree with these arrays as its leaves
    :raises CheckpointError: names, shapes or dtypes differ
    """
    expected = {prefix + name: leaf for name, leaf in _named_leaves(like)}
    if tensors.keys() != expected.keys():
        name = min(tensors.keys() ^ expected.keys())
        raise CheckpointError(
            f"The checkpoint's networks are not those that its attributes describe: {_printable(name, 200)!r} is "
            f"{'missing' if name in expected else 'not among them'}."
        )
    for name, leaf in expected.items():
        tensor = tensors[name]
        if tensor.shape != leaf.shape or tensor.dtype != leaf.dtype:
            raise CheckpointError(
                f"The checkpoint's tensor {name!r} should be {leaf.dtype} of shape {leaf.shape}, "
                f"but it is {tensor.dtype} of shape {tensor.shape}."
            )
    return jax.tree.unflatten(jax.tree.structure(like), [tensors[name] for name in expected])


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def merge(own: dict[str, np.ndarray], given: dict[str, Any], exact_match: bool) -> dict[str, np.ndarray]:
    """
    As PyTorch's ``load_state_dict``, with its kind of error.

    :param own: arrays by name
    :param given: those to replace
    :param exact_match: whether all of them have to be given, and no others; if not, others are left out
    :return: arrays of the names, shapes and dtypes of ``own``
    :raises RuntimeError: names or shapes do not match
    """
    if exact_match and given.keys() != own.keys():
        raise RuntimeError(
            f"The parameters do not match: missing {sorted(own.keys() - given.keys())}, "
            f"unexpected {sorted(given.keys() - own.keys())}."
        )
    for name in own.keys() & given.keys():
        if np.shape(given[name]) != own[name].shape:
            raise RuntimeError(f"{name} should have shape {own[name].shape}, but has {np.shape(given[name])}.")
    return {name: np.asarray(given.get(name, array), array.dtype) for name, array in own.items()}


def finite(parameters: dict[str, np.ndarray], optimizer: dict[str, np.ndarray]) -> None:
    """
    :param parameters: arrays by name
    :param optimizer: its state by name
    :raises CheckpointError: a number in one of them is NaN or infinite
    """
    for what, arrays in (("parameter", parameters), ("optimiser's", optimizer)):
        for name, array in arrays.items():
            # what is beside the optimiser's moments, such as a largest norm, may be infinite
            may_be_infinite = arrays is optimizer and "1/inner_state/" not in name
            if np.isnan(array).any() or not (may_be_infinite or np.isfinite(array).all()):
                raise CheckpointError(f"The {what} {name!r} is not finite: these parameters are of no use.")


def subtree(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """
    :param tensors: arrays by name
    :param prefix: what the names wanted begin with
    :return: these arrays, by the rest of their names
    """
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
