"""How a layer tells, without importing anything, in which way channels pass through it.

Structured pruning has a rule for every Keras layer. A layer of another technique, or of a user's
own, that treats channels as one of Keras' does declares so by a class attribute:

```python
class Scale(keras.layers.Layer):
    channels_like = keras.layers.Identity    # element by element, with no variable per channel
```

`Identity` means element by element, `PReLU` a variable `alpha` per channel, `Rescaling` constants
per channel in the configuration, `AveragePooling2D` along positions and on each channel by itself.
An activation function of your own is given the same attribute:
`my_activation.channels_like = keras.layers.Identity`.
"""

from __future__ import annotations

from typing import Any


def channels_like(operation: Any) -> type:
    """The class whose treatment of channels an operation shares; by default the one it runs."""
    declared = getattr(operation, "channels_like", None)
    return declared or getattr(operation, "keras_class", type(operation))
