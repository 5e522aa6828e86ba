"""A problem on a graph."""

import keras
import numpy as np
import tensorflow as tf

from l2l_tf.problems.suite.suite_problem import ACCURACY, SuiteProblem, split

layers = keras.layers


def graph():
    """Communities of a stochastic block model by graph convolutions (Kipf and Welling 2017).

    240 nodes of four communities, with a vector of noise and a little truth each. The labels of
    half of the nodes are held out; all edges are seen.
    """
    rng, num_nodes, num_communities = np.random.RandomState(9), 240, 4
    labels = rng.permutation(np.arange(num_nodes) % num_communities)
    chances = np.where(labels[:, None] == labels, 0.1, 0.02)
    edges = np.triu(rng.uniform(size=chances.shape) < chances, 1)
    adjacent = edges + edges.T + np.eye(num_nodes)
    degrees = adjacent.sum(axis=1)
    adjacent = (adjacent / np.sqrt(degrees[:, None] * degrees)).astype("float32")
    features = rng.normal(size=(num_nodes, 16))
    features += 0.7 * rng.normal(size=(num_communities, 16))[labels]
    train, heldout = split(np.arange(num_nodes, dtype="int32"), labels, share=0.5)

    def build_model():
        nodes = keras.Input([], dtype="int32")
        return keras.Model(nodes, Convolutions(adjacent, features.astype("float32"))(nodes))

    return SuiteProblem(
        "graph",
        build_model,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        train,
        heldout,
        batch_size=24,
        num_steps=500,
        **ACCURACY,
    )


class Convolutions(layers.Layer):
    """Numbers of nodes ``[B]`` → logits ``[B, 4]``, by two convolutions over the whole graph."""

    def __init__(self, adjacent, features):
        super().__init__()
        self.adjacent, self.features = adjacent, features
        l2 = keras.regularizers.L2(0.001)
        self.first = layers.Dense(32, "relu", kernel_regularizer=l2)
        self.dropout, self.last = layers.Dropout(0.4), layers.Dense(4)
        self.first.build([None, features.shape[1]])
        self.last.build([None, 32])

    def call(self, nodes, training=False):
        h = self.first(tf.matmul(self.adjacent, self.features))
        h = self.dropout(h, training=training)
        return tf.gather(self.last(tf.matmul(self.adjacent, h)), nodes)

    def compute_output_shape(self, shape):
        return (*shape, 4)
