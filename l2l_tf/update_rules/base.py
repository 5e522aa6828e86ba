"""UpdateRule: the interface between gradients and updates."""

import hashlib
import warnings
import weakref
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments, hooks
from l2l_tf.update_rules import arrays, backpropagation

DTYPES = ("float32", "float64")
COUPLINGS = ("coordinate", "tensor")
_IN_THE_FILE = "in the file's weights"
# Rules made of a config without φ, by the name that it has in place of φ, which begins so.
_AWAITING = weakref.WeakValueDictionary()


class Part(NamedTuple):
    """Some of a layout's tensors, and the rule that runs them by itself."""

    rule: Any  # an UpdateRule
    indices: tuple  # into the layout, increasing


class UpdateRule(keras.layers.Layer):
    """A rule m_φ that turns gradients into updates: ``(u_t, h_{t+1}) = m_φ(∇f(θ_t), h_t)``.

    A subclass owns its meta-parameters φ as Keras weights, created in ``__init__``, and implements
    two pure methods:

    * ``initial_state(layout)``: the state h_0. `layout` is the number N of coordinates, or the
      list of ``(name, shape)`` of the tensors.
    * ``update(inputs, state)``: one step, ``(updates, state)``. The updates are *added* to the
      parameters.

    `inputs` is what the rule sees: the gradients; or with the class attribute ``sees_parameters``,
    ``Inputs(gradients, parameters)``, both alike. The class attribute ``coupling`` says which
    coordinates see each other in ``update``:

    * ``"coordinate"``: none do. Gradients and updates are vectors ``[N]``, and every leaf of the
      state ends in the coordinate axis, so any piece of the coordinates can be run alone.
    * ``"tensor"``: those of a tensor do. Gradients and updates are lists of tensors in the
      layout's order, the state is a list with one state for each of them, of any structure of
      tensors of the rule's dtype, and no tensor sees another: ``update([g], [s])`` can be called
      for each by itself. In a SavedModel a shape is known at run time alone: there,
      ``initial_state`` gets it as an int32 vector. A rule that takes tensors of some shape only
      says so by the property ``tensor_shape``.

    A coordinatewise rule may have two more levels, the tensors and the model. Then it implements
    ``control`` too (and ``summarize`` and ``initial_control``, where it needs them), and its
    ``update(inputs, state, controls)`` gets the controls of each coordinate's tensor. One step of
    all is in ``update_rules/levels.py``.

    If the coordinates' state is a function of the inputs alone, as moments are, say so by the class
    attribute ``state_depends_on_weights = False``: nothing is then backpropagated through it.

    The leaves of it that add up steps which bfloat16 would round away, as sums over all steps do,
    are named by their indices in the class attribute ``leaves_that_add_up``: an optimizer keeps
    them, and the control's state, in float32 at least.

    A rule never stops gradients: its callers decide what is differentiated. Meta-parameters are
    float32 whatever the global Keras dtype policy is, unless `dtype` says "float64" (for tests).

    ``get_config()`` carries φ, so a rule restored by ``from_config`` is the trained one. Decorate
    subclasses with ``keras.saving.register_keras_serializable`` to save and load them.

    Args:
        dtype: "float32" or "float64".
        name: Keras layer name.

    Example: a new rule in a few lines.

    >>> class SignDescent(UpdateRule):
    ...     def initial_state(self, layout):
    ...         return ()
    ...     def update(self, gradients, state):
    ...         return -0.01 * tf.sign(gradients), state
    >>> SignDescent().update(tf.constant([3.0, -2.0]), ())[0].numpy().tolist()
    [-0.009999999776482582, 0.009999999776482582]
    """

    coupling = "coordinate"
    sees_parameters = False
    state_depends_on_weights = True
    leaves_that_add_up = ()
    rules = ()  # that this one is made of; see ``GroupedRule``
    # What names φ in a config that leaves it to the file's weights, until these are loaded.
    awaits_weights = None

    def __init__(self, *, dtype="float32", name=None):
        dtype = arguments.choice("dtype", getattr(dtype, "name", dtype), DTYPES)  # or tf.float32
        if self.coupling not in COUPLINGS:
            raise ValueError(
                f"{type(self).__name__}.coupling must be one of {COUPLINGS}. "
                f"Received: {self.coupling!r}"
            )
        if self.has_control and self.coupling != "coordinate":
            raise ValueError(
                f"{type(self).__name__} has a `control`, so its coupling must be 'coordinate'. "
                f"Received: {self.coupling!r}"
            )
        super().__init__(dtype=dtype, name=name)
        self.built = True  # Weights are made by __init__; there is nothing to infer from inputs.

    def initial_state(self, layout):
        """The state before the first step.

        Args:
            layout: number of coordinates (an int or a scalar tensor), or a list of
                ``(name, shape)``.

        Returns:
            A structure of tensors; see the class for their axes.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement initial_state(layout).")

    def update(self, inputs, state):
        """One step of the rule.

        Args:
            inputs: what the rule sees: gradients ``[N]``, or a list of tensors if the coordinates
                are coupled; or ``Inputs`` of such.
            state: as ``initial_state`` or the step before returned it.
            controls: only of a rule with a ``control``: ``[C, N]``, to each coordinate those of
                its tensor.

        Returns:
            ``(updates, state)``, of the same structure and shapes as gradients and state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement update(inputs, state).")

    def final_shift(self, state):
        """What is added to the parameters when training ends: by default None, nothing.

        Of a rule that averages its iterates, from where gradients were taken to the average; as
        ``ScheduleFreeAdamW`` and ``Hierarchical``. Only of coordinatewise rules.

        Args:
            state: of the coordinates, after the last step; of a rule with a control, without its.

        Returns:
            ``[N]``, or None.
        """
        return None

    @property
    def has_control(self):
        """Whether the rule has the levels above coordinates: it implements ``control``."""
        return type(self).control is not UpdateRule.control

    def initial_control(self, tensors):
        """The control's state before the first step: any structure of leaves ``[..., K]``.

        Args:
            tensors: a ``Tensors``.
        """
        return ()

    def summarize(self, inputs, state):
        """What each coordinate adds to its tensor's summaries: ``[S, N]``.

        Args:
            inputs, state: as of ``update``, before the step.
        """
        return tf.zeros([0, tf.shape(tf.nest.flatten(inputs)[0])[0]], self.dtype)

    def control(self, summaries, state, tensors):
        """From the summaries of all tensors to the controls of each.

        Args:
            summaries: ``[S, K]``, a column a tensor. They are recorded and taken as given, as
                gradients are: no derivative goes through them.
            state: as of ``initial_control``.
            tensors: a ``Tensors``: facts ``[K]``, and ``tensors.model_sum`` for what is shared by
                all tensors of the model. (Of a rule in a ``GroupedRule``, those of its group; of
                variables some of which get no gradient, those that do.)

        Returns:
            ``(controls [C, K], state)``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no control.")

    def kernel(self):
        """Faster ``update`` and ``backpropagate`` than XLA makes of them, or None.

        Returns:
            An object with ``build()``, ``can_run(state)``, ``(weights, inputs, state)`` to
            ``(updates, state)``, ``can_backpropagate(state)``, and
            ``backpropagate(weights, inputs, state, cotangents)``; see ``kernel.Kernel``.
        """
        return None

    def fused_step(self):
        """A faster step of whole tensors, with a control, than XLA makes of the levels; or None.

        Returns:
            An object as ``hierarchical_step.HierarchicalStep``.
        """
        return None

    def parts(self, layout):
        """The parts that run independently of each other, each by a rule of its own.

        Unroll, meta-gradient and optimizer go through the parts. A rule is one part, itself with
        all tensors, unless it is made of others, as ``GroupedRule`` is.

        Args:
            layout: list of ``(name, shape)``.

        Returns:
            List of ``Part``; each tensor is in one of them.
        """
        return [Part(self, tuple(range(len(layout))))]

    @property
    def tensor_shape(self):
        """Shape of the tensors that a rule with coupling "tensor" takes.

        A tuple, with None where any size will do; or None: tensors of any shape.
        """
        return None

    def backpropagate(self, inputs, state, cotangents):
        """The derivative of Σ_t ⟨u_t, cotangent_t⟩ by φ, over T steps from `state`.

        By a tape over ``update``; a subclass without a control may know a faster way.

        Args:
            inputs: as of ``update``, each with a leading axis T.
            state: the state before the first step.
            cotangents: of the updates; like the gradients.

        Returns:
            List of gradients, one for each of ``trainable_variables``.
        """
        return backpropagation.of_updates(self, inputs, state, cotangents)[0]

    def backpropagate_step(self, inputs, state, cotangents, *controls):
        """The derivative of ⟨u, cotangents⟩ of one step, where the state does not depend on φ.

        By a tape over ``update``; a subclass may know a faster way.

        Args:
            inputs, state, controls: as of ``update``.
            cotangents: of the updates.

        Returns:
            ``(by φ, by the controls, the state after the step)``: a list, one for each of
            ``trainable_variables``; and a list like `controls`, of controls that do not depend on
            φ anything of their shape.
        """
        return backpropagation.of_step(self, inputs, state, cotangents, *controls)

    def cotangents_of_moves(self, cotangents, state):
        """The cotangents of what ``backpropagate`` is to take for the updates.

        Of a rule whose updates are its moves, passed on by a linear filter that does not depend on
        φ (as an average of iterates is): the transpose of the filter. By default there is none.

        Args:
            cotangents: of the updates, ``[T, ...]``.
            state: before the first step.

        Returns:
            Of the moves, the same shape.
        """
        return cotangents

    def add_weight(self, *args, **kwargs):
        weight = super().add_weight(*args, **kwargs)
        hooks.keep_in_checkpoints(self, weight.name, weight)
        return weight

    def load_own_variables(self, store):
        own = self._trainable_variables + self._non_trainable_variables  # not of rules within
        if own and not store.keys():
            warnings.warn(
                f"The file holds no update rule for '{self.name}', which keeps its own weights. "
                "The model was saved without a LearnedOptimizer; or with one rule in several "
                "optimizers, by an older l2l_tf, and then these weights are right.",
                stacklevel=2,
            )
            return
        super().load_own_variables(store)
        self.awaits_weights = None

    def leave_weights_to_the_file(self, config):
        """Takes φ out of this rule's config, for a file that holds it anyway, as weights.

        Args:
            config: of ``get_config``. Changed: in place of φ is a name for this rule, by which
                ``from_config`` makes one rule of several configs of it, as long as none has its
                weights. Not so for a class with a ``from_config`` of its own.
        """
        if (
            "weights" in config
            and type(self).from_config.__func__ is UpdateRule.from_config.__func__
        ):
            digest = hashlib.sha256(repr(config["weights"]).encode()).hexdigest()
            config["weights"] = f"{_IN_THE_FILE}, {digest[:16]}-{id(self)}"

    @property
    def weights_to_save(self):
        """The weights that the config carries: all but those that one of its arguments gives."""
        return self.weights

    def get_config(self):
        config = {"name": self.name, "dtype": self.dtype_policy.name}
        values = {f"{i}_{w.name}": w.numpy() for i, w in enumerate(self.weights_to_save)}
        if values:
            config["weights"] = arrays.to_text(values)
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        weights = config.pop("weights", None)
        is_in_the_file = isinstance(weights, str) and weights.startswith(_IN_THE_FILE)
        rule = _AWAITING.get(weights) if is_in_the_file else None
        if rule is not None and rule.awaits_weights == weights:
            return rule
        rule = cls(**config)
        if is_in_the_file:
            rule.awaits_weights, _AWAITING[weights] = weights, rule
        elif weights is not None:
            rule._assign(weights)
        return rule

    def _assign(self, weights):
        """Takes the weights of a config: as text; or as arrays by name, as of that text."""
        variables = self.weights_to_save
        if isinstance(weights, list):  # an older config's, of the trainable ones alone
            variables, weights = self.trainable_variables, dict(enumerate(weights))
        elif isinstance(weights, str):
            weights = arrays.from_text(weights)
        expected = [tuple(variable.shape) for variable in variables]
        received = [np.shape(value) for value in weights.values()]
        if expected != received:
            raise ValueError(
                f"The weights in the config do not fit {type(self).__name__}. "
                f"Expected shapes: {expected}. Received: {received}"
            )
        for variable, value in zip(variables, weights.values()):
            variable.assign(value)


def made_of(rule):
    """The rules that a rule is made of, however they are nested; of any other, itself alone."""
    return [part for other in rule.rules for part in made_of(other)] if rule.rules else [rule]


def parts_of(rule, layout):
    """A rule's ``parts(layout)``, checked: each of the layout's tensors is in one of them.

    Raises:
        TypeError, ValueError: they are no parts, or forget a tensor, or take one twice.
    """
    expected = (
        f"{type(rule).__name__}.parts(layout) must return a list of Part(rule, indices), each of "
        f"the {len(layout)} tensors of the layout in one part"
    )
    parts = rule.parts(layout)
    try:
        parts = [Part(rule_of_part, tuple(indices)) for rule_of_part, indices in parts]
    except TypeError:
        raise TypeError(f"{expected}. Received: {parts!r}") from None
    for part in parts:
        arguments.instance("rule", part.rule, UpdateRule, "an UpdateRule, in each part")
    of_parts = [list(part.indices) for part in parts]
    is_increasing = all(indices == sorted(indices) for indices in of_parts)
    if not is_increasing or sorted(sum(of_parts, [])) != list(range(len(layout))):
        raise ValueError(
            f"{expected}, in increasing order. Received the indices: "
            f"{of_parts} of {[name for name, _ in layout]}"
        )
    return parts


def num_coordinates(layout):
    """Number of coordinates N of a layout (an int, or a list of ``(name, shape)``).

    Also where these are tensors.
    """
    if isinstance(layout, (list, tuple)):
        return sum(
            tf.reduce_prod(shape) if tf.is_tensor(shape) else int(np.prod(shape))
            for _, shape in layout
        )
    return layout


def split(vector, layout):
    """A vector ``[..., N]`` as the list of a layout's tensors, each with the leading axes."""
    pieces = tf.split(vector, [int(np.prod(shape)) for _, shape in layout], axis=-1)
    leading = vector.shape[:-1]
    return [tf.reshape(piece, [*leading, *shape]) for piece, (_, shape) in zip(pieces, layout)]


def flatten(tensors):
    """A list of tensors as one vector ``[N]``."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
