"""GroupedRule: a rule of its own for each group of variables."""

import re
from collections.abc import Iterable

import keras
import tensorflow as tf

from l2l_tf import arguments, hooks
from l2l_tf.update_rules import base, levels, serialization


@keras.saving.register_keras_serializable("l2l_tf")
class GroupedRule(base.UpdateRule):
    """Several rules, each for the variables whose names match its pattern, meta-trained together.

    As in the paper's CIFAR-10 experiment (Andrychowicz et al. 2016, section 3.3): one LSTM for the
    parameters of convolutions, another for the rest. Also the way to a rule that takes tensors of
    one kind alone, such as ``KernelwiseLSTM``.

    Args:
        groups: list of ``(pattern, rule)``; a rule may be a ``GroupedRule`` itself. A pattern is a
            regular expression, searched (``re.search``) in a variable's name (its Keras path, such
            as "sequential/conv2d/kernel"); or a function of ``(name, shape)`` to a bool, which is
            saved with the rule by its name if ``keras.saving.register_keras_serializable`` knows
            it. A variable belongs to the first pattern that matches.
        name: Keras layer name.

    State: for each tensor, a dict with one key, the number of its group, and the state that the
    rule of this group has for it.

    Raises:
        ValueError: of the constructor, about a pattern or a rule; of ``parts`` and
            ``initial_state``, a variable that no pattern matches.

    Example:

    >>> from l2l_tf.update_rules import CoordinatewiseLSTM, SGD
    >>> rule = GroupedRule([("bias", SGD(0.1)), (".*", CoordinatewiseLSTM(layers=(4,)))])
    >>> layout = [("dense/kernel", (2, 3)), ("dense/bias", (3,))]
    >>> [(type(part.rule).__name__, part.indices) for part in rule.parts(layout)]
    [('SGD', (1,)), ('CoordinatewiseLSTM', (0,))]
    """

    coupling = "tensor"

    def __init__(self, groups, name=None):
        groups = _checked(groups)
        super().__init__(dtype=groups[0][1].dtype, name=name)
        self.patterns = [pattern for pattern, _ in groups]
        self.rules = [rule for _, rule in groups]
        for index, rule in enumerate(self.rules):
            hooks.keep_in_checkpoints(self, f"rule_{index}", rule)

    def parts(self, layout):
        """The parts of each rule whose group is not empty; see ``UpdateRule.parts``."""
        groups = [self._group_of(name, shape) for name, shape in layout]
        parts = []
        for number, rule in enumerate(self.rules):
            indices = [i for i, group in enumerate(groups) if group == number]
            if indices:
                of_group = base.parts_of(rule, [layout[i] for i in indices])
                parts += [base.Part(p.rule, tuple(indices[i] for i in p.indices)) for p in of_group]
        return parts

    def initial_state(self, layout):
        return [self._initial_state_of(*tensor) for tensor in layout]

    def update(self, inputs, state):
        updates, states = [None] * len(state), [None] * len(state)
        for number, rule in enumerate(self.rules):
            places = [place for place, of_tensor in enumerate(state) if number in of_tensor]
            if places:
                seen = levels.map_inputs(lambda of, p=places: [of[place] for place in p], inputs)
                if self.sees_parameters and not rule.sees_parameters:
                    seen = seen.gradients
                of_group = [state[place][number] for place in places]
                for place, update, new in zip(places, *_update(rule, seen, of_group)):
                    updates[place], states[place] = update, {number: new}
        return updates, states

    @property
    def sees_parameters(self):
        return any(rule.sees_parameters for rule in self.rules)

    def _group_of(self, name, shape):
        for number, pattern in enumerate(self.patterns):
            is_match = (
                re.search(pattern, name) if isinstance(pattern, str) else pattern(name, shape)
            )
            if is_match:
                return number
        raise ValueError(
            f"No pattern of the GroupedRule matches the variable {name!r} of shape "
            f"{tuple(shape)}. Received: {self.patterns}. Add a group for it, or '.*' as the last "
            "pattern, which matches the rest."
        )

    def _initial_state_of(self, name, shape):
        number = self._group_of(name, shape)
        rule = self.rules[number]
        if rule.coupling != "coordinate":
            return {number: rule.initial_state([(name, shape)])[0]}
        tensors = levels.Tensors.of_shapes([shape], rule.dtype)
        return {number: levels.initial_state(rule, base.num_coordinates([(name, shape)]), tensors)}

    @property
    def weights_to_save(self):
        """Of a subclass, its own weights: each rule's config carries those of the rule."""
        of_rules = {id(weight) for rule in self.rules for weight in rule.weights}
        return [weight for weight in super().weights_to_save if id(weight) not in of_rules]

    def leave_weights_to_the_file(self, config):
        for rule, group in zip(self.rules, config["groups"]):
            rule.leave_weights_to_the_file(group["rule"]["config"])

    def get_config(self):
        groups = [
            {"pattern": _pattern_config(pattern), "rule": serialization.serialize(rule)}
            for pattern, rule in zip(self.patterns, self.rules)
        ]
        config = {**super().get_config(), "groups": groups}
        del config["dtype"]  # that of its rules
        return config

    @classmethod
    def from_config(cls, config):
        groups = [
            (_pattern_of(group["pattern"]), serialization.deserialize(group["rule"]))
            for group in config["groups"]
        ]
        return super().from_config({**config, "groups": groups})


def _update(rule, inputs, states):
    """One step of a rule for a list of tensors, each with its state: ``(updates, states)``."""
    if rule.coupling != "coordinate":
        return rule.update(inputs, states)
    gradients = tf.nest.flatten(inputs)[: len(states)]
    sizes = [gradient.shape.num_elements() for gradient in gradients]
    seen = levels.map_inputs(base.flatten, inputs)
    state = levels.join_states(states)
    tensors = levels.Tensors.of_shapes([gradient.shape for gradient in gradients], rule.dtype)
    updates, state = levels.step(rule, seen, state, tensors, levels.owners_of(sizes))
    updates = base.split(updates, [("", gradient.shape) for gradient in gradients])
    if not rule.has_control:
        return updates, levels.split_state(state, sizes)
    coordinates, control = state
    columns = levels.split_state(control, [1] * len(sizes))
    return updates, list(zip(levels.split_state(coordinates, sizes), columns))


def _checked(groups):
    """The groups as a list of pairs, each with a pattern and a rule that can be together."""
    groups = list(arguments.instance("groups", groups, Iterable, "a list of (pattern, rule)"))
    if not groups or not all(isinstance(g, (list, tuple)) and len(g) == 2 for g in groups):
        raise ValueError(
            "`groups` must be a list of (pattern, rule), one at least, such as "
            f"[('conv', rule), ('.*', another_rule)]. Received: groups={groups!r}"
        )
    for pattern, rule in groups:
        _check_pattern(pattern)
        if not isinstance(rule, base.UpdateRule):
            raise TypeError(
                f"Each rule of a GroupedRule must be an UpdateRule. Received: {rule!r} for the "
                f"pattern {pattern!r}"
            )
    before = set()
    for pattern, rule in groups:
        of_rule = {id(part) for part in base.made_of(rule)}
        if before & of_rule:
            raise ValueError(
                f"The rule for the pattern {pattern!r} is, or has, the very same object as one "
                "before it. Join their patterns, as in 'conv|bias', or give each a rule of its own."
            )
        before |= of_rule
    dtypes = [rule.dtype for _, rule in groups]
    if len(set(dtypes)) > 1:
        raise ValueError(
            f"The rules of a GroupedRule must have one dtype. Received: {', '.join(dtypes)}"
        )
    return groups


def _check_pattern(pattern):
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"A pattern must be a regular expression. Received: {pattern!r} ({error})"
            ) from error
    elif not callable(pattern):
        raise TypeError(
            "A pattern must be a regular expression, or a function of a variable's name and shape. "
            f"Received: {pattern!r}"
        )


def _pattern_config(pattern):
    if isinstance(pattern, str):
        return pattern
    name = serialization.registered_name(pattern)
    if name is None:
        raise ValueError(
            f"The pattern {pattern!r} is not registered, so the GroupedRule could not be loaded "
            "again. Decorate the function with @keras.saving.register_keras_serializable(), or use "
            "a regular expression."
        )
    return {"function": name}


def _pattern_of(config):
    if isinstance(config, str):
        return config
    function = keras.saving.get_registered_object(config["function"])
    if not callable(function) or isinstance(function, type):
        raise ValueError(
            f"The pattern {config['function']!r} is not a registered function. Import the module "
            "that defines it first."
        )
    return function
