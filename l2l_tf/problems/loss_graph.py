"""Loss graph: what the graph of a Keras model's loss tells of the variables that it uses."""

import keras
import tensorflow as tf


class NotingScope(keras.StatelessScope):
    """A stateless scope that notes which variables are assigned to."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._updated = {}  # by id: Keras' variables compare by value

    @property
    def updated(self):
        return list(self._updated.values())

    def add_update(self, update):
        self._updated[id(update[0])] = update[0]
        super().add_update(update)


class LossGraph:
    """What the graph of a loss with substituted values tells.

    Args:
        graph: of a function of `values`, which it puts in the place of `variables`.
        variables: Keras variables.
        values: the tensors in their place.
        updates: their values after the forward pass; the same tensors where nothing changes them.
        results: the loss and the gradients, tensors.

    Attributes:
        acting: variables that the forward pass changes, and on whose values the loss or a gradient
            depends, or the change of another such one.
        missed: ids of variables that are read past the substitution.
        foreign: names of other variables that the graph assigns to.
        draws: names of operations that draw random numbers by seeds of their own.
    """

    def __init__(self, graph, variables, values, updates, results):
        handles = {id(v.value.handle): v for v in variables}
        captured = {id(external): internal for external, internal in graph.captures}
        self.missed = {id(v) for handle, v in handles.items() if handle in captured}
        types = _types_of_operations(graph)
        self.draws = sorted(t for t in types if t.startswith(_DRAWS))
        known = {id(captured[handle]) for handle in handles if handle in captured}
        self.foreign = []
        if any(t.startswith(_ASSIGNS) for t in types):
            self.foreign = sorted(
                getattr(external, "_name", None) or internal.name
                for external, internal in graph.captures
                if internal.dtype == tf.resource
                and id(internal) not in known
                and _is_assigned(internal)
            )
        self.acting = [variables[i] for i in _acting(values, updates, results)]


_ASSIGNS = ("Assign", "ResourceScatter", "ResourceStridedSliceAssign", "ResourceApply")
_DRAWS = (
    "Random",
    "TruncatedNormal",
    "ParameterizedTruncatedNormal",
    "Multinomial",
    "Rng",  # of a tf.random.Generator
    "StatefulRandom",
)


def _types_of_operations(graph):
    operations = [*graph.get_operations()]
    for function in graph.as_graph_def().library.function:
        operations += function.node_def
    return {op.type if isinstance(op, tf.Operation) else op.op for op in operations}


def _acting(values, updates, results):
    """Indices of the values that change and that results, or changes that act, depend on."""
    changed = [i for i, (old, new) in enumerate(zip(values, updates)) if new is not old]
    acting, reached = [], _ancestors(results)
    while True:
        more = [i for i in changed if i not in acting and values[i].op.name in reached]
        if not more:
            return sorted(acting)
        acting += more
        reached = _ancestors([*results, *(updates[i] for i in acting)])


def _is_assigned(resource):
    """Whether an operation assigns to a captured resource, or hands it to a function."""
    return any(op.type.startswith((*_ASSIGNS, "Stateful")) for op in resource.consumers())


def _ancestors(tensors):
    """Names of all operations that some tensors depend on."""
    seen, waiting = set(), [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if op.name not in seen:
            seen.add(op.name)
            waiting += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return seen


def without(variables, others):
    """The variables that are not among others, by identity: Keras' compare by value."""
    ids = {id(v) for v in others}
    return [v for v in variables if id(v) not in ids]
