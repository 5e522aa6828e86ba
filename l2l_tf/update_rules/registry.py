"""The rules' names on the command line: for each its class, options of that, and a line of help.

Plain text: ``--help`` reads this file alone, and answers without loading TensorFlow.
"""

# Averaged iterates, and what goes with them: see docs/design.md.
_AVERAGES = {
    "averaging": 0.95,
    "averaging_power": 4.0,
    "initial_log_step": -2.2,
    "max_log_step": 0.0,
    "depth_power": 0.25,
    "warm_up": 50,
    "decay_after": 1000,
    "settling": 30,
    "max_growth": 10.0,
}
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
        _AVERAGES,
        "for any model: averaged steps in a corrected direction, of a learned size for each tensor",
    ),
    "hierarchical-lite": (
        "Hierarchical",
        {"coordinate_units": 0, **_AVERAGES},
        "the same without the correction",
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
