"""Update rules: learned and hand-designed, all of one interface."""

from l2l_tf.update_rules.base import UpdateRule
from l2l_tf.update_rules.hand_designed import SGD, Adam, Momentum, RMSprop
from l2l_tf.update_rules.lstm import CoordinatewiseLSTM
from l2l_tf.update_rules.rnnprop import RNNprop

__all__ = ["Adam", "CoordinatewiseLSTM", "Momentum", "RMSprop", "RNNprop", "SGD", "UpdateRule"]
