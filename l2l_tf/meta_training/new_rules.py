"""New rules by the names that the command line uses."""

import inspect
import re

from l2l_tf import arguments, update_rules
from l2l_tf.problems import own_code
from l2l_tf.update_rules import base, serialization
from l2l_tf.update_rules.registry import CONV_RULES, RULES

# In a variable's Keras path, such as "net/conv2d/kernel": "conv" in the name of its layer, which
# by default is the class' name in snake case.
CONV = "conv[^/]*/[^/]*$"
CONV_KERNEL = "conv[^/]*/[^/]*kernel$"


def new_rule(name, layers, seed, conv_name=None, layout=None):
    """A rule with new meta-parameters.

    Args:
        name: of ``registry.RULES``; or "package.module:class", an ``UpdateRule`` of one's own, or
            in place of the class a function that returns one. It gets `layers` and `seed` if its
            signature names them.
        layers: units of each LSTM layer.
        seed: int, of the initial meta-parameters.
        conv_name: of ``registry.CONV_RULES`` or as `name`, of a rule of its own for the variables
            of convolutions (kernels and biases; "kernelwise": kernels alone); None for none.
        layout: of the problem, for `conv_name`.

    Returns:
        The rule; with `conv_name` a ``GroupedRule``.

    Raises:
        TypeError: an argument of another kind; what one's own function returns is no rule.
        ValueError: an unknown name, or a rule of one's own that raises or cannot be saved; or
            `conv_name`, and no variable is of a convolution, or with "kernelwise" they are not of
            one size.

    >>> layout = [("conv2d/kernel", (3, 3, 1, 8)), ("conv2d/bias", (8,)), ("dense/kernel", (8, 2))]
    >>> rule = new_rule("lstm", (4,), 0, conv_name="kernelwise", layout=layout)
    >>> rule.patterns, rule.rules[0].kernel_shape
    (['conv[^/]*/[^/]*kernel$', '.*'], (3, 3))
    """
    arguments.instance("layers", layers, (list, tuple), "a list of numbers of units")
    layers = tuple(arguments.integer("layers", units, 1) for units in layers)
    arguments.integer("seed", seed)
    rule = _make("rule", name, RULES, layers, seed)
    if conv_name is None:
        return rule
    pattern = CONV_KERNEL if conv_name == "kernelwise" else CONV
    shapes = [shape for variable, shape in layout if re.search(pattern, variable)]
    if not shapes:
        raise ValueError(
            f"A rule for convolutions needs variables whose path matches {pattern!r}. "
            f"Received: {[variable for variable, _ in layout]}, for conv_rule={conv_name!r}"
        )
    options = {}
    if conv_name == "kernelwise":
        sizes = {tuple(shape[:2]) for shape in shapes if len(shape) == 4}
        if len(sizes) != 1 or any(len(shape) != 4 for shape in shapes):
            raise ValueError(
                "A kernelwise rule needs convolution kernels [kh, kw, in, out] of one size. "
                f"Received: {shapes}. For several sizes, make a GroupedRule with a KernelwiseLSTM "
                "for each."
            )
        options = {"kernel_shape": sizes.pop()}
    conv_rule = _make("conv_rule", conv_name, CONV_RULES, layers, seed, **options)
    return update_rules.GroupedRule([(pattern, conv_rule), (".*", rule)])


def takes_layers(name):
    """Whether the rule of this name has `layers`."""
    if ":" in name:
        return own_code.takes(name, "layers")
    return "layers" in inspect.signature(_class_of(name, CONV_RULES)).parameters


def name_of(rule):
    """The command line's name of a rule's class, or the class' own."""
    own = type(rule).__name__
    if getattr(update_rules, own, None) is not type(rule):
        return own
    config = rule.get_config()
    names = [
        n
        for n, (cls, options, _) in CONV_RULES.items()
        if cls == own and options.items() <= config.items()
    ]
    return names[-1] if names else own  # the last has the most options


def _class_of(name, rules):
    return getattr(update_rules, rules[name][0])


def _make(argument, name, rules, layers, seed, **options):
    arguments.text(argument, name)
    if ":" not in name:
        arguments.choice(argument, name, rules)
        options |= rules[name][1]
        options |= {"layers": layers} if takes_layers(name) else {}
        return _class_of(name, rules)(seed=seed, **options)
    offered = {"layers": layers, "seed": seed}
    rule = own_code.call(
        "Rule", name, base.UpdateRule, "an l2l_tf.update_rules.UpdateRule", offered
    )
    # Now, not when the first validation saves it.
    serialization.serialize(rule)
    return rule
