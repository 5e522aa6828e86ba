"""The rules' names on the command line: for each its class, options of that, and a line of help.

Plain text: ``--help`` reads this file alone, and answers without loading TensorFlow.
"""

RULES = {
    "lstm": ("CoordinatewiseLSTM", {}, "the paper's LSTM on log-and-sign inputs"),
    "rnnprop": ("RNNprop", {}, "RNNprop's LSTM on moment inputs"),
    "averaging": (
        "GlobalAveragingLSTM",
        {},
        "the paper's, with cells that are averaged over the coordinates of each tensor",
    ),
    "hierarchical": (
        "Hierarchical",
        {},
        "for any model: Adam's direction, corrected, and a learned step size for each tensor",
    ),
    "hierarchical-lite": (
        "Hierarchical",
        {"coordinate_units": 0},
        "the same without the correction: Adam's direction alone",
    ),
}
# For the variables of convolutions alone.
CONV_RULES = {
    **RULES,
    "kernelwise": (
        "KernelwiseLSTM",
        {},
        "for convolution kernels of one size: an LSTM that sees a whole kernel at once",
    ),
}


def help_on(rules):
    """A line a rule."""
    return "\n".join(f"{name}: {what}" for name, (_, _, what) in rules.items())
