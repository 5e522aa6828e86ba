"""New rules by the names that the command line uses."""

import re

from l2l_tf import update_rules

RULES = {
    "lstm": update_rules.CoordinatewiseLSTM,
    "rnnprop": update_rules.RNNprop,
    "averaging": update_rules.GlobalAveragingLSTM,
}
CONV_RULES = {**RULES, "kernelwise": update_rules.KernelwiseLSTM}

# In a variable's Keras path, such as "net/conv2d/kernel": "conv" in the name of its layer, which
# by default is the class' name in snake case.
CONV = "conv[^/]*/[^/]*$"
CONV_KERNEL = "conv[^/]*/[^/]*kernel$"


def new_rule(name, layers, seed, conv_name=None, layout=None):
    """A rule with new meta-parameters.

    Args:
        name: of ``RULES``.
        layers: units of each LSTM layer.
        seed: int, of the initial meta-parameters.
        conv_name: of ``CONV_RULES``, of a rule of its own for the variables of convolutions
            (kernels and biases; "kernelwise": kernels alone); None for none.
        layout: of the problem, for `conv_name`.

    Returns:
        The rule; with `conv_name` a ``GroupedRule``.

    Raises:
        ValueError: `conv_name`, and no variable is of a convolution, or with "kernelwise" they are
            not of one size.

    >>> layout = [("conv2d/kernel", (3, 3, 1, 8)), ("conv2d/bias", (8,)), ("dense/kernel", (8, 2))]
    >>> rule = new_rule("lstm", (4,), 0, conv_name="kernelwise", layout=layout)
    >>> rule.patterns, rule.rules[0].kernel_shape
    (['conv[^/]*/[^/]*kernel$', '.*'], (3, 3))
    """
    rule = RULES[name](layers=layers, seed=seed)
    if conv_name is None:
        return rule
    pattern = CONV_KERNEL if conv_name == "kernelwise" else CONV
    shapes = [shape for variable, shape in layout if re.search(pattern, variable)]
    if not shapes:
        raise ValueError(
            f"A rule for convolutions needs variables whose path matches {pattern!r}. "
            f"Received: {[variable for variable, _ in layout]}"
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
    conv_rule = CONV_RULES[conv_name](layers=layers, seed=seed, **options)
    return update_rules.GroupedRule([(pattern, conv_rule), (".*", rule)])


def name_of(rule):
    """The command line's name of a rule's class, or the class' own."""
    names = {cls: name for name, cls in CONV_RULES.items()}
    return names.get(type(rule), type(rule).__name__)
