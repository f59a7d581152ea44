"""Links between the layers of a graph: what a layer must know of the layers before and after it."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree


class Links:
    """Call index → what one call of a layer is linked to.

    A class of its own because Keras would take the layers in a dict for sublayers.
    """

    def __init__(self) -> None:
        self._by_call: dict[int, Any] = {}

    def get(self, call_index: int) -> Any:
        """What that call is linked to; `None` where it is not linked."""
        return self._by_call.get(call_index)

    def set(self, call_index: int, value: Any) -> None:
        self._by_call[call_index] = value

    def values(self) -> list[Any]:
        """What all calls are linked to."""
        return list(self._by_call.values())


class Linked:
    """Mixin for layers that compute by what comes before or after them in the graph.

    `link` is called whenever the layer is called on symbolic tensors. Keras does so when it loads
    or clones a model, so links need not be saved.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        inputs = args[0] if args else None
        leaves = tree.flatten(inputs)
        if leaves and all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            self.link(inputs, kwargs.get("call_index", 0))
        return outputs

    def link(self, inputs: Any, call_index: int) -> None:
        """Looks up what the layer reads.

        Args:
            inputs: The symbolic tensor, or a structure of them.
            call_index: Which call of a shared layer.
        """

    def rounds_itself(self, call_index: int) -> bool:
        """Whether a ReLU is an operator of its own in that call, not fused into one before it."""
        return False

    def link_rounding(self, quantizer: Any, call_index: int) -> None:
        """Called by the quantizer that rounds what this layer gives in that call."""
