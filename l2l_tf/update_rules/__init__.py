"""Update rules: learned and hand-designed, all of one interface."""

from l2l_tf.update_rules.base import UpdateRule
from l2l_tf.update_rules.grouped import GroupedRule
from l2l_tf.update_rules.hand_designed import SGD, Adam, AdamW, Momentum, RMSprop
from l2l_tf.update_rules.hierarchical import Hierarchical
from l2l_tf.update_rules.lstm.averaging import GlobalAveragingLSTM
from l2l_tf.update_rules.lstm.coordinatewise import CoordinatewiseLSTM
from l2l_tf.update_rules.lstm.kernelwise import KernelwiseLSTM
from l2l_tf.update_rules.lstm.rnnprop import RNNprop
from l2l_tf.update_rules.prodigy import Prodigy
from l2l_tf.update_rules.schedule_free import ScheduleFreeAdamW

__all__ = [
    "Adam",
    "AdamW",
    "CoordinatewiseLSTM",
    "GlobalAveragingLSTM",
    "GroupedRule",
    "Hierarchical",
    "KernelwiseLSTM",
    "Momentum",
    "Prodigy",
    "RMSprop",
    "RNNprop",
    "SGD",
    "ScheduleFreeAdamW",
    "UpdateRule",
]
