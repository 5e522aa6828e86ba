"""Hierarchical: a rule for any model, on three levels: coordinates, tensors, the model."""

import math

import keras
import numpy as np
import tensorflow as tf

from l2l_tf import arguments
from l2l_tf.update_rules import base
from l2l_tf.update_rules.hierarchical_step import HierarchicalStep

FAST, SLOW, SQUARE = 0.9, 0.99, 0.99  # decays of the two momenta and of the second moment
POWERS = (0.8, 0.95, 0.99)  # of the averages of a tensor's gradient power
COSINES = (0.9, 0.98)  # of the averages of the hypergradient's cosine
LARGEST = 1e15  # gradients beyond are taken as this: a sum of millions of squares is finite
NUM_FEATURES, NUM_TENSOR_FEATURES = 7, 19
LEAST_LOG_STEP = -14.0
MOST_GAIN = 2.0  # of the logarithm of a coordinate's gain
# A jump of the power by F makes the ratio of its averages (0.8 + 0.2 F) / (0.99 + 0.01 F), never
# more than 20: it passes 10 where gradients have become ten times as large.
BRAKE, ALARM = -0.3, 10.0
LATE = 300.0  # steps after which time stands still for the control, whatever the horizon
RELEASE = 0.95  # what is left of the brake after a step without an alarm
AT_REST = 100.0


@keras.saving.register_keras_serializable("l2l_tf")
class Hierarchical(base.UpdateRule):
    """Adam's direction, corrected by a small net, with a step size for each tensor by a controller.

    For any model: every input is free of the gradients' scale, every step is relative to the
    parameters' size. After Wichrowska et al. 2017 ("Learned optimizers that scale and generalize"),
    VeLO (Metz et al. 2022) and Celo2, and simpler than each. On three levels:

    * **Coordinates** keep two momenta and a second moment. A feed-forward net turns them into a
      correction of Adam's direction and a gain.
    * **Tensors** have a GRU each, which sees sums over the tensor's coordinates. It moves the
      logarithm of the tensor's step size, and biases the coordinates' net.
    * **The model** has one signal that all tensors see: whether the last step still goes downhill.

    The formulas are in docs/design.md. The last layers start from zeros: the untrained rule is Adam
    with steps of ``exp(initial_log_step)`` of each tensor's size; or with `averaging`, as
    ``--rule=hierarchical`` and the shipped `general` have it, Schedule-Free Adam with such steps,
    which is the stronger by far. What no weights can override:

    * a step of at most ``exp(max_log_step)`` of a tensor's size, times `max_direction`;
    * a brake: while a tensor's gradient power, averaged over a few steps, is ten times that of the
      last hundred, the steps of all tensors shrink by a quarter each time; then they grow back
      within some fifty steps;
    * where a coordinate's gradient stays 0, it comes to rest.

    Gradients are exact in scale from about 1e-17 to 1e15 in size (float32); larger ones are taken
    as 1e15, and smaller ones as 0.

    Args:
        control_units: units of the GRU; 0 for none: then a log step stays what it is first, there
            are no weights, and what only the GRU or the net would see is not kept.
        coordinate_units: units of each of the two layers of the coordinates' net, which the GRU
            biases; 0 for none: then the direction is Adam's, and little is to be computed for each
            coordinate.
        initial_log_step: logarithm of a tensor's first step, relative to its size.
        max_log_step: the most that it becomes.
        depth_power: p; the first step of a model with M matrices (tensors of two axes or more) is
            smaller by the factor (M/2)^p: what changes in one layer, the others see. 0 for none.
        max_change: the most that it changes in a step.
        max_direction: the most that a coordinate's direction becomes, in units of Adam's; 3 at
            least, where Adam's is cut.
        averaging: β, below 1, of Schedule-Free averaging (Defazio et al. 2024, "The road less
            scheduled"): the steps are those of iterates z, from gradients without momentum, and
            the parameters are (1 - β) z + β x, where x is the mean of all z so far. So noise is
            averaged out, as by a decaying step size, whatever the horizon. When training ends,
            ``final_shift`` hands out x. 0 for none.
        averaging_power: r: in the mean, step t counts as about t^r.
        warm_up: steps over which the size of steps grows in proportion to their number; 0 for none.
        decay_after: τ; step t is smaller by the factor 1/√(1 + t/τ), as what is known to converge
            whatever the horizon; over fewer steps than τ it hardly matters. 0 for none.
        settling: after so many steps t, the most that a log step changes falls as 1/t², so that it
            becomes constant, whatever was learned at some horizon. 0 for never.
        max_growth: a tensor's size counts as at most this many times its first one. (Noise that
            makes parameters grow makes steps grow that are relative to them.) None for no limit.
        seed: int, of the initial meta-parameters; None draws them anew each time.
        dtype, name: as of ``UpdateRule``.

    State of a coordinate: two momenta and a second moment; with averaging, z - y too, and without a
    GRU then no momenta.

    Example:

    >>> from l2l_tf import LearnedOptimizer
    >>> variable = tf.Variable([[1.0, -1.0]])
    >>> optimizer = LearnedOptimizer(Hierarchical(seed=0))
    >>> optimizer.apply([tf.constant([[1e-9, 1e9]])], [variable])
    >>> [f"{change:.4f}" for change in (variable - [[1.0, -1.0]]).numpy()[0]]
    ['-0.0070', '-0.0070']
    """

    sees_parameters = True
    state_depends_on_weights = False

    def __init__(
        self,
        control_units=16,
        coordinate_units=8,
        initial_log_step=-5.0,
        max_log_step=-2.0,
        depth_power=0.0,
        max_change=0.15,
        max_direction=10.0,
        averaging=0.0,
        averaging_power=0.0,
        warm_up=0,
        decay_after=0,
        settling=0,
        max_growth=None,
        seed=None,
        dtype="float32",
        name=None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.control_units = arguments.integer("control_units", control_units, 0)
        self.coordinate_units = arguments.integer("coordinate_units", coordinate_units, 0)
        if coordinate_units and not control_units:
            raise ValueError(
                "`coordinate_units` must be 0 where `control_units` is: the GRU biases the "
                f"coordinates' net. Received: coordinate_units={coordinate_units}"
            )
        self.max_log_step = arguments.real("max_log_step", max_log_step, above=LEAST_LOG_STEP)
        self.initial_log_step = arguments.real(
            "initial_log_step", initial_log_step, minimum=LEAST_LOG_STEP, maximum=max_log_step
        )
        self.depth_power = arguments.real("depth_power", depth_power, minimum=0)
        self.max_change = arguments.real("max_change", max_change, above=0)
        self.max_direction = arguments.real("max_direction", max_direction, minimum=3)
        self.averaging = arguments.real("averaging", averaging, minimum=0, below=1)
        self.averaging_power = arguments.real("averaging_power", averaging_power, minimum=0)
        self.warm_up = arguments.integer("warm_up", warm_up, 0)
        self.decay_after = arguments.integer("decay_after", decay_after, 0)
        self.settling = arguments.integer("settling", settling, 0)
        self.max_growth = (
            None if max_growth is None else arguments.real("max_growth", max_growth, minimum=1)
        )
        self.seed = None if seed is None else arguments.integer("seed", seed)
        rng = np.random.default_rng(None if self.seed is None else self.seed % 2**64)

        def weight(name, rows, columns, scale=0.0):
            value = scale / math.sqrt(columns) * rng.normal(size=[rows, columns])
            return self.add_weight(name=name, shape=value.shape, initializer=lambda *_, **__: value)

        units, hidden = self.control_units, self.coordinate_units
        if units:
            gates = 3 * units
            self._gates_of_features = weight("gates_of_features", gates, NUM_TENSOR_FEATURES, 0.5)
            self._gates_of_units = weight("gates_of_units", gates, units, 0.5)
            self._gate_biases = weight("gate_biases", gates, 1)
            self._change = weight("change", 1, units)
            self._change_bias = weight("change_bias", 1, 1)
        if hidden:
            self._steering = weight("steering", hidden, units, 0.4)
            self._steering_bias = weight("steering_bias", hidden, 1)
            self._first = weight("first", hidden, NUM_FEATURES, 0.7)
            self._second = weight("second", hidden, hidden, 1.0)
            self._second_bias = weight("second_bias", hidden, 1)
            self._last = weight("last", 2, hidden)
            self._last_bias = weight("last_bias", 2, 1)

    @property
    def has_momenta(self):
        """Whether the state has the two momenta: for the GRU, or for Adam's direction."""
        return bool(self.control_units or not self.averaging)

    @property
    def leaves_that_add_up(self):
        return (self.num_moments,)

    @property
    def num_moments(self):
        """Of a coordinate's state, all but what is for averaging."""
        return 3 if self.has_momenta else 1

    def initial_state(self, layout):
        zeros = tf.zeros([base.num_coordinates(layout)], self.dtype)
        return (zeros,) * (self.num_moments + bool(self.averaging))

    def initial_control(self, tensors):
        def rows(number):
            return tf.zeros([number, 1], self.dtype) * tensors.sizes

        first_scale = {"first_scale": rows(1)} if self.max_growth else {}
        log_step = rows(1) + self.initial_log_step
        if self.depth_power:
            is_matrix = tf.cast(tensors.ranks > 1, self.dtype)
            num_matrices = tf.maximum(tensors.model_sum(is_matrix), 1.0)
            log_step -= self.depth_power * tf.math.log(num_matrices / 2)
            log_step = tf.clip_by_value(log_step, LEAST_LOG_STEP, self.max_log_step)
        of_gru = {
            "units": rows(self.control_units),
            "step": rows(1),
            "cosines": rows(len(COSINES)),
            "model_cosines": rows(len(COSINES)),
        }
        return {
            **first_scale,
            "steps": rows(1),
            "log_step": log_step,
            "brake": rows(1),
            "powers": rows(len(POWERS)),
            **(of_gru if self.control_units else {}),
        }

    def summarize(self, inputs, state):
        g = _gradients(inputs)
        sums = [g * g, inputs.parameters * inputs.parameters]
        if self.has_momenta:
            fast, slow, square, *_ = state
            direction = fast * _inverse_root(square)
            sums += [
                g * fast,
                fast * fast,
                g * slow,
                slow * slow,
                fast * slow,
                g * direction,
                direction * direction,
                square,
            ]
        if self.coordinate_units:
            *_, square = _accumulate(g, state[:3])
            sums += [_log_root(square), tf.cast(square > 0, g.dtype)]
        return tf.stack(sums)

    def control(self, summaries, state, tensors):
        sums, before = tf.unstack(summaries), state
        scale, corrections, state = self._scale_and_powers(*sums[:2], state, tensors)
        is_alarmed = state["powers"][0] > ALARM * state["powers"][2]
        is_alarmed = tensors.model_sum(tf.cast(is_alarmed, self.dtype)) > 0
        brake = tf.where(is_alarmed, state["brake"] + BRAKE, RELEASE * state["brake"])
        state |= {"brake": brake}
        if self.control_units:
            features, state = self._tensor_features(sums[:10], scale, before, state, tensors)
            units = self._run_units(features, state["units"])
            change = self.max_change * tf.tanh(tf.matmul(self._change, units) + self._change_bias)
            if self.settling:
                change *= tf.minimum((self.settling / state["steps"]) ** 2, 1.0)
            change = tf.where(is_alarmed, tf.minimum(change, 0.0), change)
            log_step = tf.clip_by_value(
                state["log_step"] + change, LEAST_LOG_STEP, self.max_log_step
            )
            state |= {"units": units, "log_step": log_step}
        step = tf.exp(state["log_step"] + brake) * scale
        if self.warm_up:
            step *= tf.minimum(state["steps"] / self.warm_up, 1.0)
        if self.decay_after:
            step *= tf.math.rsqrt(1 + state["steps"] / self.decay_after)
        if self.control_units:
            state |= {"step": step}
        controls = [step, corrections]
        if self.coordinate_units:
            mean_log = tf.math.divide_no_nan(*sums[10:])
            biases = tf.matmul(self._steering, units) + self._steering_bias
            controls += [mean_log[None], biases]
        if self.averaging:
            controls.append(self._share(state["steps"]))
        return tf.concat(controls, axis=0), state

    def update(self, inputs, state, controls):
        state, step, direction, *of_net = self._seen(inputs, state, controls)
        if self.coordinate_units:
            features, biases, moves = of_net
            outputs = self._run_net(features, tf.unstack(biases))
            direction, *_ = self._corrected(direction, moves, *outputs)
        move = -step * direction
        if not self.averaging:
            return move, state
        *moments, lead = state
        share, beta = controls[-1], self.averaging
        update = (1 - beta + beta * share) * move + share * lead
        return update, (*moments, (1 - share) * (lead + beta * move))

    def final_shift(self, state):
        """From y to x, the average of the iterates: ``[N]``. The last leaf is β (z - x)."""
        if not self.averaging:
            return None
        return -(1 - self.averaging) / self.averaging * state[-1]

    def cotangents_of_moves(self, cotangents, state):
        """From the cotangents of y's updates those of z's moves: see ``update``."""
        if not self.averaging:
            return cotangents
        num_steps, beta = cotangents.shape[0], self.averaging
        _, control = state
        before = tf.reshape(control["steps"], [-1])[0]
        # Outside of the loop: of sums in it TensorFlow makes variables, which threads would share.
        shares = self._share(before + tf.range(1, num_steps + 1, dtype=self.dtype))
        at_once, kept = 1 - beta + beta * shares, 1 - shares

        def step(t, of_lead, of_moves):
            of_move = at_once[t] * cotangents[t] + beta * kept[t] * of_lead
            return t - 1, shares[t] * cotangents[t] + kept[t] * of_lead, of_moves.write(t, of_move)

        of_moves = tf.TensorArray(self.dtype, num_steps, element_shape=cotangents.shape[1:])
        *_, of_moves = tf.while_loop(
            lambda t, *_: t >= 0,
            step,
            (num_steps - 1, tf.zeros_like(cotangents[0]), of_moves),
            maximum_iterations=num_steps,
        )
        return of_moves.stack()

    def _share(self, steps):
        """Of step 1, 2 …, the share of the average that its iterate gets."""
        return (self.averaging_power + 1) / (steps + self.averaging_power)

    def fused_step(self):
        # A subclass with a step of its own, or a control, has another.
        own = type(self).summarize, type(self).update, type(self).initial_state
        own_control = type(self).control, type(self).initial_control
        has_control = not self.control_units and own_control == _CONTROL_OF_KERNEL
        return HierarchicalStep(self, has_control) if own == _OF_KERNEL else None

    def backpropagate_step(self, inputs, state, cotangents, controls):
        """As of ``UpdateRule``, by hand: as matrix products, where ``update`` is one loop."""
        state, step, direction, *of_net = self._seen(inputs, state, controls)
        by_weights, by_biases = [], []
        if self.coordinate_units:
            features, biases, moves = of_net
            features = tf.stack(features)
            first = tf.nn.relu(tf.matmul(self._first, features) + biases)
            second = tf.nn.relu(tf.matmul(self._second, first) + self._second_bias)
            correction, gain = tf.unstack(tf.matmul(self._last, second) + self._last_bias)
            direction, uncut, factor = self._corrected(direction, moves, correction, gain)
            by_uncut = tf.where(tf.abs(uncut) <= self.max_direction, -step * cotangents, 0.0)
            by_gain = tf.where(tf.abs(gain) <= MOST_GAIN, by_uncut * uncut, 0.0)
            by_outputs = tf.stack([by_uncut * factor * moves, by_gain])
            by_second = tf.matmul(self._last, by_outputs, transpose_a=True)
            by_second = tf.where(second > 0, by_second, 0.0)
            by_first = tf.matmul(self._second, by_second, transpose_a=True)
            by_first = tf.where(first > 0, by_first, 0.0)
            by_biases = [by_first]
            by_weights = [
                (self._first, tf.matmul(by_first, features, transpose_b=True)),
                (self._second, tf.matmul(by_second, first, transpose_b=True)),
                (self._second_bias, tf.reduce_sum(by_second, axis=1, keepdims=True)),
                (self._last, tf.matmul(by_outputs, second, transpose_b=True)),
                (self._last_bias, tf.reduce_sum(by_outputs, axis=1, keepdims=True)),
            ]
        by_variable = {id(variable): product for variable, product in by_weights}
        products = [
            by_variable.get(id(v), tf.zeros(v.shape, self.dtype)) for v in self.trainable_variables
        ]
        # Neither bias corrections nor the mean size of gradients depend on the weights.
        given = tf.zeros([4 if self.coordinate_units else 3, 1], self.dtype) * direction
        of_share = [given[:1]] if self.averaging else []
        by_controls = tf.concat(
            [(-direction * cotangents)[None], given, *by_biases, *of_share], axis=0
        )
        return products, [by_controls], state

    def _seen(self, inputs, state, controls):
        """``(state, step, Adam's direction)``; and for the net ``(features, biases, moves)``."""
        g = _gradients(inputs)
        *momenta, square = _accumulate(g, state[: self.num_moments])
        state = (*momenta, square, *state[self.num_moments :])
        step, of_fast, of_slow, of_gradient, *mean_log = tf.unstack(controls[:5])
        size = _inverse_root(square)
        if momenta:
            fast = momenta[0] * size * of_fast
        g = g * size * of_gradient
        if self.averaging:  # which is a momentum of its own
            direction = tf.clip_by_value(g, -self.max_direction, self.max_direction)
        else:
            direction = tf.clip_by_value(fast, -3.0, 3.0)
        if not self.coordinate_units:
            return state, step, direction
        features = _features(fast, momenta[1] * size * of_slow, g, _log_root(square) - mean_log[0])
        # Without a gradient now or recently there is nothing to correct.
        moves = tf.minimum(AT_REST * (tf.abs(fast) + tf.abs(g)), 1.0)
        return state, step, direction, features, controls[5 : 5 + self.coordinate_units], moves

    def _corrected(self, direction, moves, correction, gain):
        """``(direction, the same before it is cut, its factor)``."""
        factor = tf.exp(tf.clip_by_value(gain, -MOST_GAIN, MOST_GAIN))
        uncut = (direction + moves * correction) * factor
        return tf.clip_by_value(uncut, -self.max_direction, self.max_direction), uncut, factor

    def _scale_and_powers(self, gg, parameters, state, tensors):
        """``(scale [1, K], corrections [3, K], state)``, from two of the sums of ``summarize``.

        What a step is relative to; what corrects the bias of the moments; and of the state, what
        counts steps and averages the gradients' power.
        """
        size, steps = tf.maximum(tensors.sizes, 1.0), state["steps"][0]
        power = gg / size
        powers = _averages(state["powers"], POWERS, power)
        powers = tf.where(steps == 0, power, powers)
        floor = tf.where(
            tensors.ranks > 1, 0.3 * tf.math.rsqrt(tf.maximum(tensors.fan_in, 1.0)), 0.1
        )
        scale = tf.sqrt(parameters / size + floor * floor)
        new = {"steps": steps[None] + 1, "powers": powers}
        if self.max_growth:
            first = tf.where(steps == 0, scale, state["first_scale"][0])
            scale = tf.minimum(scale, self.max_growth * first)
            new["first_scale"] = first[None]
        of_fast, of_slow, of_square = (_filled(decay, steps) for decay in (FAST, SLOW, SQUARE))
        root = tf.sqrt(of_square)
        corrections = tf.stack([root / of_fast, root / of_slow, root])
        return scale[None], corrections, {**state, **new}

    def _tensor_features(self, sums, scale, before, state, tensors):
        """``(features [19, K], state)``, from the sums of ``summarize``, and the state before."""
        gg, parameters, gf, ff, gs, ss, fs, gd, dd, square = sums

        def product(a, b, ab, ag, bg):
            """Of two momenta after the step: a becomes a times a's decay + (1 - decay) times g."""
            return a * b * ab + a * (1 - b) * ag + (1 - a) * b * bg + (1 - a) * (1 - b) * gg

        ff_new = product(FAST, FAST, ff, gf, gf)
        ss_new = product(SLOW, SLOW, ss, gs, gs)
        fs_new = product(FAST, SLOW, fs, gf, gs)
        size, steps = tf.maximum(tensors.sizes, 1.0), before["steps"][0]
        powers, mean = state["powers"], parameters / size
        cosine = _cosine(gd, gg, dd)
        cosines = _averages(state["cosines"], COSINES, cosine)
        step = before["step"][0]
        of_model = _cosine(*map(tensors.model_sum, (gd * step, gg, dd * step * step)))
        model_cosines = _averages(state["model_cosines"], COSINES, of_model)
        of_fast, of_slow, of_square = (_filled(decay, steps) for decay in (FAST, SLOW, SQUARE))
        variance = (SQUARE * square + (1 - SQUARE) * gg) / of_square

        def signal(momentum, correction, least):
            ratio = tf.math.divide_no_nan(momentum / (correction * correction), variance)
            return 0.25 * tf.math.log(ratio + least)

        features = [
            tf.math.log1p(tf.minimum(steps, LATE)) / 7 - 0.6,
            _cosine(gf, gg, ff),
            _cosine(gs, gg, ss) * 2,
            _cosine(fs_new, ff_new, ss_new),
            cosine,
            signal(ff_new, of_fast, 1e-4) + 1,
            signal(ss_new, of_slow, 1e-5) + 1.5,
            tf.maximum(tf.math.log(mean * _inverse_root(mean) / scale[0] + 1e-6), -3.0) / 3,
            (state["log_step"][0] + 5) / 4,
            _growth(powers[0], powers[1]),
            _growth(powers[1], powers[2]),
            cosines[0] * 2,
            cosines[1] * 4,
            tf.cast(tensors.ranks < 2, self.dtype),
            tf.math.log(tf.maximum(tensors.fan_in, 1.0)) / 5 - 0.5,
            tf.math.log(size) / 8 - 0.7,
            of_model,
            model_cosines[0] * 2,
            model_cosines[1] * 4,
        ]
        new = {"cosines": cosines, "model_cosines": model_cosines}
        return tf.stack(features), {**state, **new}

    def _run_units(self, features, units):
        """One step of the GRU: ``[units, K]``."""
        update, reset, new = tf.split(
            tf.matmul(self._gates_of_features, features) + self._gate_biases, 3
        )
        of_update, of_reset, of_new = tf.split(tf.matmul(self._gates_of_units, units), 3)
        update = tf.sigmoid(update + of_update + 1.0)
        new = tf.tanh(new + tf.sigmoid(reset + of_reset) * of_new)
        return update * units + (1 - update) * new

    def _run_net(self, features, biases):
        """Features, a list of ``[N]``, to the correction and the logarithm of the gain, ``[N]``."""
        layers = [(self._first.value, biases)]
        for weights, biases in (self._second, self._second_bias), (self._last, self._last_bias):
            layers.append((weights.value, tf.unstack(biases.value[:, 0])))
        *hidden, last = layers
        for layer in hidden:
            features = [tf.nn.relu(h) for h in _layer(features, *layer)]
        return _layer(features, *last)

    def get_config(self):
        return {
            **super().get_config(),
            "control_units": self.control_units,
            "coordinate_units": self.coordinate_units,
            "initial_log_step": self.initial_log_step,
            "max_log_step": self.max_log_step,
            "depth_power": self.depth_power,
            "max_change": self.max_change,
            "max_direction": self.max_direction,
            "averaging": self.averaging,
            "averaging_power": self.averaging_power,
            "warm_up": self.warm_up,
            "decay_after": self.decay_after,
            "settling": self.settling,
            "max_growth": self.max_growth,
            "seed": self.seed,
        }


_OF_KERNEL = Hierarchical.summarize, Hierarchical.update, Hierarchical.initial_state
_CONTROL_OF_KERNEL = Hierarchical.control, Hierarchical.initial_control


def _gradients(inputs):
    return tf.clip_by_value(inputs.gradients, -LARGEST, LARGEST)


def _accumulate(g, moments):
    """The moments after the step: the two momenta, where there are, and the second moment."""
    *momenta, square = moments
    return (
        *(decay * old + (1 - decay) * g for decay, old in zip((FAST, SLOW), momenta)),
        SQUARE * square + (1 - SQUARE) * (g * g),
    )


def _filled(decay, steps):
    """Of an average that began with 0, the weight of what it has seen: 1 - decay^(steps + 1)."""
    return -tf.math.expm1(math.log(decay) * (steps + 1))


def _features(fast, slow, gradient, relative):
    """Of each coordinate, what the net sees: a list of ``[N]``."""
    clip, magnitude = tf.clip_by_value, 3 * tf.abs(slow)
    return [
        clip(fast, -3.0, 3.0),
        3 * clip(slow, -3.0, 3.0),
        clip(gradient, -3.0, 3.0),
        clip(3 * fast * slow, -2.0, 2.0),
        tf.minimum(magnitude, 3.0) - 0.5,
        clip(relative, -4.0, 4.0) / 2,
        tf.minimum(tf.abs(fast), 2.0) - 0.3,
    ]


def _layer(inputs, weights, biases):
    """A product with few rows, spelled out: XLA makes one loop of it and all around it."""
    return [
        tf.add_n([w * x for w, x in zip(tf.unstack(row), inputs)]) + bias
        for row, bias in zip(tf.unstack(weights), biases)
    ]


def _averages(averages, decays, value):
    decays = tf.constant(decays, value.dtype)[:, None]
    return decays * averages + (1 - decays) * value


def _inverse_root(x):
    """1/√x, and 0 for 0: also where the product of two such would be too small for a float."""
    is_positive = x > 0
    return tf.where(is_positive, tf.math.rsqrt(tf.where(is_positive, x, 1.0)), 0.0)


def _cosine(product, square, other_square):
    return product * _inverse_root(square) * _inverse_root(other_square)


def _log_root(x):
    """log √x, and 0 for 0."""
    return 0.5 * tf.math.log(tf.where(x > 0, x, 1.0))


def _growth(power, longer):
    ratio = tf.math.divide_no_nan(power, longer)
    return tf.clip_by_value(_log_root(ratio), -2.0, 2.0)
