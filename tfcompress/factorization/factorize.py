"""`factorize`: returns a plain Keras model in which layers have low rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.factorization.forms import METHODS
from tfcompress.factorization.plan import FactorizationPlan, Planner
from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.rewrite import copy_variables, fresh
from tfcompress.model.subclassed import functional_for
from tfcompress.model.user_class import class_of_copies, copy_attributes


def factorize(
    model: keras.Model,
    *,
    ranks: int | Mapping[Any, int | tuple[int, int] | None] | None = None,
    energy: float | None = None,
    target_macs: int | float | None = None,
    sensitivity: Mapping[Any, float] | None = None,
    methods: Sequence[str] = METHODS,
    data: Any = None,
) -> keras.Model:
    """Returns a copy of `model` in which kernels are products of smaller ones; plain Keras layers.

    | method      | a kernel becomes                                   | of                     |
    |-------------|----------------------------------------------------|------------------------|
    | `"svd"`     | itself with r outputs, then 1×1 (Dense: two Dense) | Dense, Conv1D, 2D, 3D  |
    | `"spatial"` | h×1 with r outputs, then 1×w                       | Conv2D                 |
    | `"tucker2"` | 1×1 to r₁, h×w to r₂, 1×1                          | Conv2D                 |

    The last layer keeps the name, bias and activation of the original. A kernel regularizer goes to
    every factor, a kernel constraint to none. Give exactly one of `ranks`, `energy` and
    `target_macs`. A layer whose factors would take more weights or more multiply-accumulates stays
    as it is. `plan_factorization` returns the plan alone. Finetune afterwards.

    Args:
        model: A built Sequential or Functional model that is not compressed yet; left untouched.
        ranks: A rank for all layers, or layer name, regular expression, class or name of a class →
            rank; two ranks for Tucker-2; `None` leaves a layer alone. One rank for a convolution
            with a window means `"spatial"` where that is possible and among `methods`, else
            `"svd"`.
        energy: Share of each kernel's squared norm to keep, in (0, 1]; among the methods that keep
            it, the one with the fewest multiply-accumulates is taken.
        target_macs: Multiply-accumulates of the whole model, or their share in (0, 1). Ranks are
            then chosen over all layers such that the sum of relative errors is the least.
        sensitivity: Layer name, regular expression, class or name of a class → weight of its
            error, for `target_macs`; 1 for layers without a key.
        methods: Which methods may be used.
        data: Inputs: an array (or a list or dict of arrays for several inputs), which is cut into
            batches of 32, or a finite iterable of batches of inputs. Kernels are then approximated
            in the norm ‖C^½ W‖, C = E[x xᵀ]: the error of the layer's outputs. There is no such
            Tucker-2. A layer that reads only zeros keeps the plain norm.

    Returns:
        An uncompiled model of the same inputs and outputs.

    Raises:
        TypeError: Not a Keras model, or data that cannot be iterated.
        ValueError: A subclassed, unbuilt or compressed model, a kernel that is not finite, an
            argument out of range, a key that matches no layer, data that do not fit the inputs, or
            a budget that cannot be met.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> low_rank = tfc.factorize(model, ranks=8)
        >>> tfc.count_macs(model), tfc.count_macs(low_rank)
        (4096, 1024)
    """
    model = functional_for(model, data)
    check_plain_kernels(model)
    planner = Planner(model, methods, data, ranks, energy, target_macs, sensitivity)
    return _build(model, planner)


def plan_factorization(
    model: keras.Model,
    *,
    ranks: int | Mapping[Any, int | tuple[int, int] | None] | None = None,
    energy: float | None = None,
    target_macs: int | float | None = None,
    sensitivity: Mapping[Any, float] | None = None,
    methods: Sequence[str] = METHODS,
    data: Any = None,
) -> FactorizationPlan:
    """The plan that `factorize` would follow with the same arguments; nothing is changed.

    Args:
        model: See `factorize`, as for all other arguments.
        ranks: A rank for all layers, or layer → rank.
        energy: Share of each kernel's squared norm to keep.
        target_macs: Multiply-accumulates of the whole model, or their share.
        sensitivity: Layer → weight of its error, for `target_macs`.
        methods: Which methods may be used.
        data: Inputs, for errors of layer outputs instead of kernels.

    Raises:
        TypeError: As `factorize`.
        ValueError: As `factorize`.
    """
    return Planner(model, methods, data, ranks, energy, target_macs, sensitivity).plan


def _build(given: keras.Model, planner: Planner) -> keras.Model:
    """The factorized model."""
    chains, kernels = {}, []
    taken = {operation.name for operation in planner.graph.operations()}
    for operation in planner.graph.operations():
        form = planner.plan.forms.get(operation.name)
        if form is None or not isinstance(operation, keras.Layer):
            chains[operation] = [fresh(operation)]
            continue
        made = planner.layers[operation.name].build(form, taken)
        chains[operation] = [layer for layer, _ in made]
        kernels.extend(made)

    def call(node, args, kwargs):
        first, *rest = chains[node.operation]
        result = first(*args, **kwargs)
        for layer in rest:
            result = layer(result)
        return result

    model_class, arguments = class_of_copies(given)
    model = planner.graph.to_model(model_class, call, **arguments)
    copy_attributes(given, model)
    for operation, chain in chains.items():
        if not isinstance(operation, keras.Layer):
            continue
        if len(chain) == 1:
            if chain[0].variables:
                copy_variables(operation, chain[0])
        elif operation.use_bias:
            chain[-1].bias.assign(operation.bias)
        for layer in chain:
            layer.trainable = operation.trainable
    for layer, kernel in kernels:
        layer.kernel.assign(kernel)
    return model
