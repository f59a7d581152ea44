"""What a layer declares of itself by class attributes, for techniques that do not import it.

*   `channels_like`: the Keras class that treats channels in the same way. Structured pruning has a
    rule for every Keras layer; a layer of another technique, or of a user's own, declares whose it
    shares:

    ```python
    class Scale(keras.layers.Layer):
        channels_like = keras.layers.Identity    # element by element, no variable per channel
    ```

    `Identity` means element by element, `PReLU` a variable `alpha` per channel, `Rescaling`
    constants per channel in the configuration, `MaxPooling2D` along positions and on each channel
    by itself. An activation function is given the same attribute:
    `my_activation.channels_like = keras.layers.Identity`.

*   `returns_input`: `True` where a layer returns the values of its input, exactly or rounded to a
    grid. Its variables are then its own state and no parameters of the network.
"""

from __future__ import annotations

from typing import Any


def channels_like(operation: Any) -> type:
    """The class whose treatment of channels an operation shares; by default the one it runs."""
    declared = getattr(operation, "channels_like", None)
    if declared is not None:
        return declared
    return getattr(operation, "keras_class", type(operation))


def returns_input(operation: Any) -> bool:
    """Whether an operation returns the values of its input, exactly or rounded to a grid."""
    return bool(getattr(operation, "returns_input", False))
