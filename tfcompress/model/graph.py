"""A functional Keras model as an editable graph of calls.

`Graph.from_model` reads a Sequential or Functional model (nested ones are inlined: a fused group
may cross their borders), techniques edit it, `Graph.to_model` calls the operations anew and gives
a Keras model.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras import tree

from tfcompress.model import keras_private
from tfcompress.model.deep_graphs import deep_graph


@dataclasses.dataclass(eq=False)
class Value:
    """One tensor of the graph: output `index` of `node` (`None` for an input of the graph)."""

    spec: keras.KerasTensor
    node: Node | None = None
    index: int = 0
    # The calls that read it; kept by the calls themselves.
    _readers: dict[Node, None] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def shape(self) -> tuple[int | None, ...]:
        return tuple(self.spec.shape)

    @property
    def is_float(self) -> bool:
        return keras.backend.is_float_dtype(self.spec.dtype)

    @property
    def name(self) -> str:
        return self.node.name if self.node is not None else self.spec.name


class Node:
    """One call of one operation (a layer or a `keras.ops` operation).

    Attributes:
        operation: What is called; the same object in several nodes is a shared layer.
        path: Names of the nested models around the call, outermost first.
        outputs: What the call returns, flattened.
        inputs: The values among its arguments, flattened.
    """

    def __init__(self, operation: Any, args: tuple, kwargs: dict, path: tuple[str, ...] = ()):
        self.operation = operation
        self.path = path
        self.outputs: list[Value] = []
        self.inputs: list[Value] = []
        self._args, self._kwargs = args, kwargs
        self._connect()

    @property
    def args(self) -> tuple:
        """Positional arguments, any nested structure with `Value` leaves."""
        return self._args

    @args.setter
    def args(self, args: tuple) -> None:
        self._args = args
        self._connect()

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments, likewise. Set them anew instead of changing the dictionary."""
        return self._kwargs

    @kwargs.setter
    def kwargs(self, kwargs: dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._connect()

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def replace_input(self, old: Value, new: Value) -> None:
        """Reads `new` wherever this call read `old`."""

        def swap(leaf: Any) -> Any:
            return new if leaf is old else leaf

        self._args, self._kwargs = tree.map_structure(swap, (self._args, self._kwargs))
        self._connect()

    def disconnect(self) -> None:
        """Reads nothing any more: the call leaves its graph."""
        for value in self.inputs:
            value._readers.pop(self, None)

    def _connect(self) -> None:
        self.disconnect()
        leaves = tree.flatten((self._args, self._kwargs))
        self.inputs = [leaf for leaf in leaves if isinstance(leaf, Value)]
        for value in self.inputs:
            value._readers[self] = None


class Graph:
    """The calls of a functional model in an order in which they can run.

    Attributes:
        inputs: Nested structure of `Value`, as the model takes it.
        outputs: Nested structure of `Value`, as the model returns it.
        nodes: The calls, topologically sorted.
        name: Name of the model.
        output_names: Names of the flat outputs, by which losses and metrics find them.
    """

    def __init__(
        self, inputs: Any, outputs: Any, nodes: list[Node], name: str, output_names: list[str]
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.nodes = nodes
        self.name = name
        self.output_names = output_names

    @classmethod
    def from_model(cls, model: keras.Model) -> Graph:
        """Reads `model`; raises `ValueError` where it has no graph of calls (see `check`)."""
        check_functional(model)
        inner = keras_private.functional_part(model)
        values: dict[int, Value] = {}
        inputs = tree.map_structure(lambda t: values.setdefault(id(t), Value(t)), inner.input)
        nodes: list[Node] = []
        _read(inner, values, nodes, ())
        outputs = tree.map_structure(lambda t: values[id(t)], inner.output)
        return cls(inputs, outputs, nodes, model.name, list(inner.output_names))

    @property
    def flat_inputs(self) -> list[Value]:
        return tree.flatten(self.inputs)

    @property
    def flat_outputs(self) -> list[Value]:
        return tree.flatten(self.outputs)

    def consumers(self, value: Value) -> list[Node]:
        """The calls that read `value`, in running order."""
        readers = list(value._readers)
        return readers if len(readers) < 2 else sorted(readers, key=self.nodes.index)

    def is_output(self, value: Value) -> bool:
        return any(v is value for v in self.flat_outputs)

    def sole_consumer(self, value: Value) -> Node | None:
        """The one call that reads `value`, where nothing else does and it is no output."""
        nodes = self.consumers(value)
        return nodes[0] if len(nodes) == 1 and not self.is_output(value) else None

    def calls(self, operation: Any) -> list[Node]:
        """Every call of `operation`; more than one means that the layer is shared."""
        return [node for node in self.nodes if node.operation is operation]

    def calls_by_operation(self) -> dict[Any, list[Node]]:
        """Every operation, in the order of its first call, and its calls."""
        found: dict[Any, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(node.operation, []).append(node)
        return found

    def operations(self) -> Iterator[Any]:
        """Every operation once, in the order of its first call."""
        return iter({id(node.operation): node.operation for node in self.nodes}.values())

    def insert_after(
        self, value: Value, operation: Any, *, only: list[Node] | None = None
    ) -> Value:
        """Calls `operation` on `value`; whatever read `value` (or only `only`) reads the result."""
        readers = self.consumers(value) if only is None else only
        node = Node(operation, (value,), {}, value.node.path if value.node else ())
        node.outputs = [Value(value.spec, node)]
        position = self.nodes.index(value.node) + 1 if value.node is not None else 0
        self.nodes.insert(position, node)
        for reader in readers:
            reader.replace_input(value, node.output)
        if only is None:
            self._replace_outputs({value: node.output})
        return node.output

    def insert_before(
        self,
        before: Node,
        operation: Any,
        args: tuple,
        kwargs: dict,
        specs: Iterable[keras.KerasTensor],
    ) -> Node:
        """Calls `operation(*args, **kwargs)` just before the call `before`; `specs` of outputs."""
        node = Node(operation, args, kwargs, before.path)
        node.outputs = [Value(spec, node, i) for i, spec in enumerate(specs)]
        self.nodes.insert(self.nodes.index(before), node)
        return node

    def replace(self, node: Node, values: list[Value]) -> None:
        """Takes a call out; what read its outputs reads `values`, one for each."""
        new = dict(zip(node.outputs, values, strict=True))
        for old, value in new.items():
            for reader in self.consumers(old):
                reader.replace_input(old, value)
        self._replace_outputs(new)
        self.nodes.remove(node)
        node.disconnect()

    def remove(self, node: Node) -> None:
        """Takes a call with one input and one output out; its readers read its input."""
        self.replace(node, [node.inputs[0]])

    def _replace_outputs(self, new: dict[Value, Value]) -> None:
        if any(value in new for value in self.flat_outputs):
            self.outputs = tree.map_structure(lambda v: new.get(v, v), self.outputs)

    def run(self, feed: dict[Value, Any], call: Callable[[Node, tuple, dict], Any]) -> Any:
        """Evaluates the graph: `call(node, args, kwargs)` returns what the node gives.

        Args:
            feed: Every input of the graph → its value.
            call: Called once per node with the arguments already evaluated.

        Returns:
            The structure of the outputs, evaluated.
        """
        known = dict(feed)

        def fill(leaf: Any) -> Any:
            return known[leaf] if isinstance(leaf, Value) else leaf

        for node in self.nodes:
            args = tree.map_structure(fill, node.args)
            kwargs = tree.map_structure(fill, node.kwargs)
            results = tree.flatten(call(node, args, kwargs))
            known.update(zip(node.outputs, results, strict=True))
        return tree.map_structure(fill, self.outputs)

    def to_model(
        self,
        model_class: type = keras.Model,
        call: Callable[[Node, tuple, dict], Any] | None = None,
        **kwargs: Any,
    ) -> keras.Model:
        """Calls every operation on fresh symbolic inputs and returns the model of the outputs.

        Args:
            model_class: Class of the model.
            call: What calls a node; by default its operation is called.
            **kwargs: For the class.
        """
        call = call or (lambda node, args, kwargs: node.operation(*args, **kwargs))
        feed = {
            value: keras.Input(
                batch_shape=value.shape, dtype=value.spec.dtype, name=value.spec.name
            )
            for value in self.flat_inputs
        }
        outputs = self.run(feed, call)
        inputs = tree.map_structure(lambda v: feed[v], self.inputs)
        with deep_graph(outputs):
            model = model_class(inputs, outputs, name=self.name, **kwargs)
        # Keras names an output after the operation that gives it, which may be another one now.
        model.output_names = list(self.output_names)
        return model


def check_functional(model: keras.Model) -> None:
    """Raises, naming the way out, unless `model` is built and has a graph of calls to read."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected a Keras model. Received: {model!r} of type {type(model)}.")
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"Expected a built model. Received: Sequential {model.name!r} without an input "
                "shape. Start it with keras.Input(shape) or call model.build(input_shape) first."
            )
    elif not is_functional(model):
        raise ValueError(
            "Expected a Sequential or Functional model, whose layers and connections can be read. "
            f"Received: the subclassed model {model.name!r} of type {type(model).__name__}. "
            "Express it with the functional API (call its parts on a keras.Input and build "
            "keras.Model(inputs, outputs)); parts of it that are functional can be passed alone."
        )


def is_functional(model: keras.Model) -> bool:
    """Whether calling the model runs its graph: a subclass with a `call` of its own does not."""
    has_graph = isinstance(model, keras.Sequential) or keras_private.has_calls(model)
    owner = next(cls for cls in type(model).__mro__ if "call" in vars(cls))
    return has_graph and owner.__module__.startswith(("keras.", "tfcompress."))


def input_structure(model: keras.Model) -> Any:
    """The symbolic inputs of a functional model as it takes them: a tensor, list or dict."""
    return keras_private.functional_part(model).input


def output_structure(model: keras.Model) -> Any:
    """The symbolic outputs of a functional model as it returns them."""
    return keras_private.functional_part(model).output


def producer(tensor: keras.KerasTensor) -> tuple[Any, tuple, dict] | None:
    """Returns `(operation, args, kwargs)` of the call that gave a symbolic tensor.

    `None` for an input and for a tensor without history.
    """
    return keras_private.call_of(tensor)


def _read(
    model: keras.Model, values: dict[int, Value], nodes: list[Node], path: tuple[str, ...]
) -> None:
    """Appends the calls of `model` to `nodes`; `values` maps its symbolic tensors, by id."""
    for operation, args, kwargs, outputs in keras_private.calls(model):
        args, kwargs = tree.map_structure(lambda x: values.get(id(x), x), (args, kwargs))
        args, kwargs = _first_positional(operation, args, kwargs)
        if isinstance(operation, keras.Model) and is_functional(operation):
            _inline(operation, args, outputs, values, nodes, path)
            continue
        node = Node(operation, tuple(args), dict(kwargs), path)
        node.outputs = [Value(t, node, i) for i, t in enumerate(outputs)]
        nodes.append(node)
        values.update({id(t): v for t, v in zip(outputs, node.outputs, strict=True)})


def _first_positional(operation: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The same call with its first argument positional: `layer(inputs=x)` as `layer(x)`."""
    if args:
        return args, kwargs
    first = next(iter(inspect.signature(operation.call).parameters), None)
    if first not in kwargs:
        return args, kwargs
    return (kwargs[first],), {k: v for k, v in kwargs.items() if k != first}


def _inline(
    model: keras.Model,
    args: tuple,
    outputs: list[keras.KerasTensor],
    values: dict[int, Value],
    nodes: list[Node],
    path: tuple[str, ...],
) -> None:
    arguments = args[0]
    inner = keras_private.functional_part(model)
    inner_inputs = inner.input
    if isinstance(arguments, dict) and not isinstance(inner_inputs, dict):
        arguments = [arguments[t.name] for t in tree.flatten(inner_inputs)]
    flat = [leaf for leaf in tree.flatten(arguments) if isinstance(leaf, Value)]
    scope = {id(t): v for t, v in zip(tree.flatten(inner_inputs), flat, strict=True)}
    _read(inner, scope, nodes, (*path, model.name))
    for symbol, inside in zip(outputs, tree.flatten(inner.output), strict=True):
        values[id(symbol)] = scope[id(inside)]
