"""The state that pruning needs to continue, saved by Keras with the weights of the model.

Keras writes every saveable that it finds among a model's attributes into the weights file, and
ignores entries of a file that the model does not have. A backup therefore holds the masks, and the
same file loads into a plain model without them.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

_PACKED = "packed_"


class PruningState(keras.Operation):
    """Named variables and arrays that travel with a model's weights file.

    Args:
        key: What identifies the run that owns the state; see `state_key`.

    Attributes:
        variables: Name → variable, saved by value.
        values: Name → array or number on the host.
        restored: What a file brought in, or `None`.
        live: Returns the numbers that are read at the moment of saving, such as the step.
        previous: The state of an earlier run on the same model, or `None`.
    """

    def __init__(self, key: str):
        super().__init__(name=key)
        self.key = key
        self.variables: dict[str, keras.Variable] = {}
        self.values: dict[str, Any] = {}
        self.restored: dict[str, np.ndarray] | None = None
        self.live: Callable[[], dict[str, int]] = dict
        self.previous: PruningState | None = None

    def call(self, *args):
        raise NotImplementedError(
            f"Expected {self.name!r} to be saved and loaded with its model. Received: a call of it."
        )

    def create_variable(self, model: keras.Model, name: str, value: np.ndarray) -> keras.Variable:
        """Creates a variable beside those of `model`, saved with them under `name`."""
        strategy = getattr(model, "distribute_strategy", None)
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            variable = keras.Variable(
                value,
                dtype=str(value.dtype),
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name=name,
            )
        self.variables[name] = variable
        return variable

    def snapshot(self) -> dict[str, np.ndarray]:
        """Returns everything as arrays."""
        arrays = {name: variable.numpy() for name, variable in self.variables.items()}
        arrays.update({name: np.asarray(value) for name, value in self.values.items()})
        arrays.update({name: np.asarray(value) for name, value in self.live().items()})
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes over what `snapshot` returned."""
        for name, variable in self.variables.items():
            if name in arrays:
                variable.assign(arrays[name])
        for name, value in arrays.items():
            if name not in self.variables:
                self.values[name] = np.array(value)

    def continued(
        self,
        step: int,
        settings: int,
        kernels: Sequence[np.ndarray],
        restore_from: str | None = None,
    ) -> dict[str, np.ndarray] | None:
        """The arrays of the run to continue; `None` where a new one begins. Can be called once.

        The order of preference is: what Keras has loaded into the model, the file, and the state of
        an earlier run with the same settings that ended at this very step.

        Args:
            step: The optimizer's step.
            settings: See `settings_key`.
            kernels: The kernels' values, in the order of their masks.
            restore_from: A `.keras` or `.weights.h5` file.

        Raises:
            ValueError: What was loaded is of another run or of another step.
        """
        arrays, previous = self.restored, self.previous
        self.restored = self.previous = None
        if arrays is None and restore_from is not None:
            arrays = read_state(restore_from, self.key)
        if arrays is not None:
            _check_continues(arrays, step, settings)
        elif previous is not None:
            arrays = previous.restored or previous.snapshot()
            if not (_continues(arrays, step, settings) and _fits(arrays, kernels)):
                return None
        return arrays

    def save_own_variables(self, store: Any) -> None:
        for name, array in self.snapshot().items():
            if array.dtype == bool:
                store[_PACKED + name] = np.packbits(array.reshape(-1))
                store[_PACKED + name + ".shape"] = np.asarray(array.shape, np.int64)
            else:
                store[name] = array

    def load_own_variables(self, store: Any) -> None:
        arrays: dict[str, np.ndarray] = {}
        for name in list(store.keys()):
            value = np.asarray(store[name])
            if not name.startswith(_PACKED):
                arrays[name] = value
            elif not name.endswith(".shape"):
                shape = np.asarray(store[name + ".shape"])
                bits = np.unpackbits(value, count=int(np.prod(shape)))
                arrays[name.removeprefix(_PACKED)] = bits.astype(bool).reshape(shape)
        self.restored = arrays or None


def state_key(technique: str, indices: Sequence[int], shapes: Sequence[Any]) -> str:
    """A name that is the same in every process for the same technique on the same kernels."""
    text = repr((technique, list(indices), [tuple(shape) for shape in shapes]))
    return f"pruning_state_{zlib.crc32(text.encode()):08x}"


def settings_key(*settings: Any) -> int:
    """A number that is the same in every process for the same settings.

    Args:
        *settings: Plain values, objects with `get_config`, functions and containers of these.
    """
    return zlib.crc32(repr([_described(value) for value in settings]).encode())


def _described(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    if hasattr(value, "get_config"):
        return [type(value).__name__, _described(value.get_config())]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # A function or an object of the user: its address would differ in the next process.
    return getattr(value, "__qualname__", type(value).__qualname__)


def attach_state(model: keras.Model, state: PruningState) -> None:
    """Makes the state part of what Keras saves with the model, in place of an earlier one."""
    state.previous = getattr(model, state.key, None)
    if state.previous is not None:
        state.previous.previous = None
    object.__setattr__(model, state.key, state)


def _continues(arrays: dict[str, np.ndarray], step: int, settings: int) -> bool:
    return int(arrays["step"]) == step and int(arrays.get("settings", -1)) == settings


def _fits(arrays: dict[str, np.ndarray], kernels: Sequence[np.ndarray]) -> bool:
    """Whether all weights outside the masks are still zero: else they were trained since."""
    return not any(
        np.any(kernel[~arrays[f"mask_{i}"].astype(bool)]) for i, kernel in enumerate(kernels)
    )


def _check_continues(arrays: dict[str, np.ndarray], step: int, settings: int) -> None:
    saved = int(arrays["step"])
    if not _continues(arrays, step, settings):
        raise ValueError(
            "Expected the state of a run with the same schedule, criterion, pattern and scope, "
            f"at the optimizer's step. Received: a state of step {saved} of "
            f"{'this' if saved != step else 'another'} run, at step {step}. To continue, load "
            "the model with its optimizer from the same file; to begin a new run from its "
            "zeros, leave `restore_from` (and the old backup) away."
        )


class _Holder(keras.Sequential):
    """Reads the state from a file of any model, without the model's own variables."""

    def load_own_variables(self, store: Any) -> None:
        pass


def read_state(path: str, key: str) -> dict[str, np.ndarray]:
    """Reads a state from a `.keras` or `.weights.h5` file.

    Raises:
        ValueError: If the file does not hold it.
    """
    holder = _Holder(name="holder")
    holder.built = True
    state = PruningState(key)
    object.__setattr__(holder, key, state)
    holder.load_weights(path)
    if state.restored is None:
        raise ValueError(
            f"{path!r} does not hold the state of a pruning run with this method on these "
            "kernels. Expected a .keras or .weights.h5 file that was saved while (or after) the "
            "same callback was training this model."
        )
    return state.restored
