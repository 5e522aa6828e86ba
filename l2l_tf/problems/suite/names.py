"""The names of the general suite's problems, and what they are.

Plain text: ``--help`` reads this file alone, and answers without loading TensorFlow.
"""

NAMES = {
    # tabular.py
    "cancer_logistic": "logistic regression on raw, ill-conditioned measurements",
    "wine_hinge": "MLP with a hinge loss and weight regularization",
    "diabetes_quantiles": "MLP, three quantiles by the pinball loss",
    "categories": "embeddings of categorical columns beside numbers, MLP",
    "factorization": "matrix factorization: embeddings, rows rarely touched",
    # synthetic.py
    "deep_narrow": "regression by 16 layers of 12 units",
    "mixture_density": "mixture density network of an inverse problem",
    "poisson_counts": "MLP, counts by the Poisson deviance",
    "point_sets": "deep sets: the diameter of a set of points",
    "spirals": "tiny MLP on two spirals, 10,000 steps",
    # text.py
    "text_gru": "GRU, language model of characters",
    "text_lstm": "LSTM, language model of words",
    "text_transformer": "transformer of 240,000 weights, language model of characters",
    "text_topics": "bag of word embeddings, classification of excerpts",
    "text_cbow": "continuous bag of words, 390,000 weights in rows",
    # images.py
    "image_denoising": "convolutional encoder-decoder on noisy patches",
    "image_superresolution": "sub-pixel convolutions, absolute error",
    "image_blur": "convolutions with batch normalization: how far a patch is blurred",
    "image_mixer": "MLP-mixer: where a patch comes from",
    "image_frozen": "a head on frozen convolutions: where a patch comes from",
    "mnist_28": "MNIST at 28×28, MLP 784-20-10 with sigmoids; from TensorFlow Datasets",
    # representations.py
    "image_contrastive": "contrastive embeddings of two views",
    "image_vae": "variational autoencoder of patches",
    # functions_of_space.py
    "image_siren": "a net of sines that is an image",
    "image_fourier": "a net on Fourier features that is an image",
    "burgers": "physics-informed net: the residual of Burgers' equation, 5,000 steps",
    # graphs.py
    "graph": "graph convolutions: communities of a random graph",
}
READ_FROM_TFDS = ("mnist_28",)
HELP = "\n".join(f"{name}: {what}" for name, what in NAMES.items())
