"""Models of the general distribution: nets of some thousand weights, of many kinds."""

import keras

layers = keras.layers


def mlp(
    inputs,
    outputs,
    widths=(),
    activation="relu",
    initializer="glorot_uniform",
    norm=None,
    dropout=0.0,
    penalty=None,
    scale=1.0,
):
    """A perceptron. `norm` is None, "batch" or "layer"; `penalty` of the squared weights."""
    model = keras.Sequential([keras.Input(inputs), layers.Rescaling(scale), layers.Flatten()])
    for units in widths:
        model.add(layers.Dense(units, kernel_initializer=initializer, kernel_regularizer=penalty))
        _add_norm(model, norm)
        model.add(layers.Activation(activation))
        if dropout:
            model.add(layers.Dropout(dropout))
    model.add(layers.Dense(outputs, kernel_initializer=initializer, kernel_regularizer=penalty))
    return model


def residual_mlp(inputs, outputs, units=20, num_blocks=4, activation="relu"):
    """Blocks of two dense layers around which the values pass, after layer normalization."""
    x = entry = keras.Input(inputs)
    x = layers.Dense(units)(layers.Flatten()(x))
    for _ in range(num_blocks):
        inner = layers.Dense(units, activation)(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(units)(inner)])
    return keras.Model(entry, layers.Dense(outputs)(x))


def autoencoder(inputs, size, widths, activation="relu", initializer="glorot_uniform", noise=0.0):
    """A perceptron whose outputs are to be its inputs, flat."""
    model = keras.Sequential([keras.Input(inputs), layers.Flatten()])
    if noise:
        model.add(layers.GaussianNoise(noise))
    for units in widths:
        model.add(layers.Dense(units, activation, kernel_initializer=initializer))
    model.add(layers.Dense(size, kernel_initializer=initializer))
    return model


def conv_net(
    inputs,
    outputs,
    channels,
    activation="relu",
    initializer="glorot_uniform",
    norm=None,
    pooling=False,
    flat=False,
    separable=False,
):
    """Convolutions of 3×3, each but the first with stride or pooling, and a dense layer."""
    model = keras.Sequential([keras.Input(inputs)])
    for index, filters in enumerate(channels):
        strides = 2 if index and not pooling else 1
        if separable and index:
            model.add(layers.DepthwiseConv2D(3, strides, padding="same"))
            model.add(layers.Conv2D(filters, 1, kernel_initializer=initializer))
        else:
            model.add(layers.Conv2D(filters, 3, strides, "same", kernel_initializer=initializer))
        _add_norm(model, norm)
        model.add(layers.Activation(activation))
        if index and pooling:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten() if flat else layers.GlobalAveragePooling2D())
    model.add(layers.Dense(outputs))
    return model


def residual_conv_net(inputs, outputs, filters=12, num_blocks=2, norm="batch"):
    """A small residual net (He et al. 2016): blocks of two convolutions."""
    x = entry = keras.Input(inputs)
    x = layers.Conv2D(filters, 3, 2, padding="same", use_bias=False)(x)
    for _ in range(num_blocks):
        inner = x
        for _ in range(2):
            inner = layers.Activation("relu")(_norm(norm)(inner))
            inner = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inner)
        x = layers.Add()([x, inner])
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(_norm(norm)(x)))
    return keras.Model(entry, layers.Dense(outputs)(x))


def recurrent_net(inputs, outputs, cell, units=16, tokens=None, at_each_step=False):
    """A recurrent layer, of "SimpleRNN", "GRU" or "LSTM", behind an embedding or not."""
    model = keras.Sequential([keras.Input(inputs)])
    if tokens:
        model.add(layers.Embedding(tokens, units))
    # Unrolled, XLA has one program of it; short as the sequences are.
    model.add(getattr(layers, cell)(units, return_sequences=at_each_step, unroll=True))
    model.add(layers.Dense(outputs))
    return model


def transformer(
    length,
    outputs,
    tokens=None,
    patch=None,
    units=16,
    num_heads=2,
    num_blocks=2,
    norm_first=True,
    causal=True,
):
    """A transformer (Vaswani et al. 2017) on tokens, or on patches of so many numbers.

    On tokens with an output at each place, which sees those before; on patches with one output.
    """
    if tokens:
        entry = keras.Input([length], dtype="int32")
        x = layers.Embedding(tokens, units)(entry)
    else:
        entry = keras.Input([length, patch])
        x = layers.Dense(units)(entry)
    x = _Places(length, units)(x)
    for _ in range(num_blocks):
        x = _sublayer(
            x,
            lambda h: layers.MultiHeadAttention(num_heads, units // num_heads)(
                h, h, use_causal_mask=causal
            ),
            norm_first,
        )
        x = _sublayer(
            x, lambda h: layers.Dense(units)(layers.Dense(2 * units, "gelu")(h)), norm_first
        )
    if norm_first:
        x = layers.LayerNormalization()(x)
    if not tokens:
        x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(entry, layers.Dense(outputs)(x))


def factorization(num_rows, num_columns, rank=6):
    """Matrix factorization: a row's and a column's vectors multiplied, and a number of each."""
    entry = keras.Input([2], dtype="int32")
    pairs = []
    for size in (rank, 1):
        of_row = layers.Embedding(num_rows, size)(entry[:, 0])
        of_column = layers.Embedding(num_columns, size)(entry[:, 1])
        pairs.append((of_row, of_column))
    (row, column), biases = pairs
    product = layers.Dot(axes=-1)([row, column])
    return keras.Model(entry, layers.Add()([product, *biases]))


def tabular_net(num_numbers, cardinalities, units=16):
    """Numbers, and an embedding of each category, into a perceptron."""
    entry = keras.Input([num_numbers + len(cardinalities)])
    columns = [entry[:, :num_numbers]]
    for index, size in enumerate(cardinalities):
        category = keras.ops.cast(entry[:, num_numbers + index], "int32")
        columns.append(layers.Embedding(size, 4)(category))
    x = layers.Dense(units, "relu")(layers.Concatenate()(columns))
    return keras.Model(entry, layers.Dense(1)(layers.Dense(units, "relu")(x)))


def bag_of_words(length, tokens, outputs, units=8):
    """The mean of the words' vectors, into a linear layer."""
    return keras.Sequential(
        [
            keras.Input([length], dtype="int32"),
            layers.Embedding(tokens, units),
            layers.GlobalAveragePooling1D(),
            layers.Dense(outputs),
        ]
    )


def set_net(size, inputs, units=24, activation="relu"):
    """Deep sets (Zaheer et al. 2017): a perceptron of each element, and one of their mean."""
    return keras.Sequential(
        [
            keras.Input([size, inputs]),
            layers.Dense(units, activation),
            layers.Dense(units, activation),
            layers.GlobalAveragePooling1D(),
            layers.Dense(units, activation),
            layers.Dense(1),
        ]
    )


def _sublayer(x, inner, norm_first):
    if norm_first:
        return layers.Add()([x, inner(layers.LayerNormalization()(x))])
    return layers.LayerNormalization()(layers.Add()([x, inner(x)]))


def _add_norm(model, norm):
    if norm is not None:
        model.add(_norm(norm))


def _norm(norm):
    return {"batch": layers.BatchNormalization, "layer": layers.LayerNormalization}[norm]()


@keras.saving.register_keras_serializable("l2l_tf")
class _Places(layers.Layer):
    """Adds a trained vector for each place of a sequence."""

    def __init__(self, length, units, **kwargs):
        super().__init__(**kwargs)
        self.length, self.units = length, units

    def build(self, _):
        self.vectors = self.add_weight(
            shape=[self.length, self.units], initializer=keras.initializers.RandomNormal(stddev=0.1)
        )

    def call(self, x):
        return x + self.vectors

    def get_config(self):
        return {**super().get_config(), "length": self.length, "units": self.units}
