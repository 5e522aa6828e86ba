"""Hierarchical's step of whole tensors by the native kernel, where it can be had.

XLA makes several loops over the coordinates, of vectors that gradients and parameters are copied
to and updates are copied from. The kernel reads each number where it is, in two passes, and writes
it once. What the control does between the two is left to XLA, or without a GRU to the kernel too.
"""

import os

import tensorflow as tf

from l2l_tf import hooks
from l2l_tf.update_rules.native import library

UNITS = (0, 4, 8)  # of the nets that the kernel is compiled for
NUM_NET_WEIGHTS = 5  # the last ones of the rule's


class HierarchicalStep:
    """Both passes over the coordinates of a ``Hierarchical``, in float32.

    The state of some tensors is one vector a leaf, that of each filled up to a multiple of `block`.

    Args:
        rule: a ``Hierarchical``.
        has_control: whether the kernel has its ``control`` too.
    """

    def __init__(self, rule, has_control):
        self._units, self._max_direction = rule.coordinate_units, rule.max_direction
        self._averaging, self._num_moments = rule.averaging, rule.num_moments
        self.has_control = has_control
        self._of_control = {
            "max_growth": rule.max_growth or 0.0,
            "warm_up": rule.warm_up,
            "decay_after": rule.decay_after,
            "averaging": rule.averaging,
            "averaging_power": rule.averaging_power,
        }
        self._is_float32 = rule.dtype == "float32"

    def build(self):
        """Compiles the kernel, once a machine: whether there is one."""
        return self._units in UNITS and self._is_float32 and library.build() is not None

    def can_run(self, parameters, state):
        """Whether the kernel takes these, on this machine, in this graph."""
        return (
            self._units in UNITS
            and self._is_float32
            and all(parameter.dtype == tf.float32 for parameter in parameters)
            and {leaf.dtype for of_piece in state for leaf in self._split(of_piece)[0]}
            <= {tf.float32, tf.bfloat16}
            and all(
                leaf.dtype == tf.float32 for of_piece in state for leaf in self._split(of_piece)[1]
            )
            and all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
            and not hooks.xla_compiles_this()
            and library.load(may_build=False) is not None
        )

    def summarize(self, gradients, parameters, state, block):
        """``(summaries [S, K], whether all gradients are finite)``.

        Args:
            gradients, parameters: lists of K tensors.
            state: of their coordinates, before the step.
        """
        summaries, is_finite = library.load().l2l_hierarchical_summarize(
            gradients,
            parameters,
            self._split(state)[0],
            has_net=self._units > 0,
            block=block,
            threads=_num_threads(),
        )
        num_sums = 2 if self._num_moments == 1 else 12 if self._units else 10
        summaries.set_shape([num_sums, len(gradients)])
        is_finite.set_shape([])
        return summaries, is_finite

    def control(self, summaries, state, tensors):
        """As the rule's ``control``, only if ``has_control``."""
        first_scale = state.get("first_scale", state["steps"])  # or it is not looked at
        of_step = library.load().l2l_hierarchical_control(
            summaries,
            *tensors.facts(),
            state["brake"],
            first_scale,
            state["log_step"],
            state["powers"],
            state["steps"],
            **self._of_control,
        )
        new = {
            "brake": of_step.new_brake,
            "first_scale": of_step.new_first_scale,
            "log_step": state["log_step"],
            "powers": of_step.new_powers,
            "steps": of_step.new_steps,
        }
        for name, old in state.items():
            new[name].set_shape(old.shape)
        return of_step.controls, {name: new[name] for name in state}

    def update(self, weights, gradients, parameters, state, block, controls, rate, decays):
        """``(parameters, state)`` after a step; the gradients' memory may be taken.

        Args:
            weights: the rule's, a list of tensors.
            controls: ``[C, K]``.
            rate: factor on the updates, a scalar.
            decays: for each tensor the share of itself that it loses, ``[K]``.
        """
        moments, lead = self._split(state)
        of_step = library.load().l2l_hierarchical_update(
            gradients,
            parameters,
            controls,
            weights[-NUM_NET_WEIGHTS:] if self._units else [],
            rate,
            decays,
            moments=moments,
            lead=lead,
            max_direction=self._max_direction,
            averaging=self._averaging,
            block=block,
            threads=_num_threads(),
        )
        moved = of_step.new_parameters
        new_state = *of_step.new_moments, *of_step.new_lead
        for new, old in zip((*moved, *new_state), (*parameters, *state)):
            new.set_shape(old.shape)
        return moved, new_state

    def _split(self, state):
        """``(moments, what is for averaging)``, of leaves."""
        return list(state[: self._num_moments]), list(state[self._num_moments :])


def _num_threads():
    return tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
