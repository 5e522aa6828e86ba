"""Patches of the two photographs that come with scikit-learn."""

import functools

import numpy as np

SIZE, NUM_PATCHES, NUM_HELDOUT = 32, 4096, 512
SHARE = 0.75  # of the photographs' width, that patches to train on are from


@functools.cache
def patches():
    """``(patches, places)`` to train on and held out, from other parts of the photographs.

    Patches are of -1 to 1; a place is one of six: which photograph, and which third of its height.
    """
    import sklearn.datasets

    images = [sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    sides = []
    for seed, number in enumerate((NUM_PATCHES, NUM_HELDOUT)):
        rng = np.random.RandomState(seed)
        height, width, _ = images[0].shape
        border = int(SHARE * width)
        first, last = ((0, border), (border, width))[seed]
        of_image = rng.randint(0, 2, number)
        tops = rng.randint(0, height - SIZE + 1, number)
        lefts = rng.randint(first, last - SIZE + 1, number)
        found = np.stack(
            [
                images[i][top : top + SIZE, left : left + SIZE]
                for i, top, left in zip(of_image, tops, lefts)
            ]
        )
        places = 3 * of_image + (tops * 3) // (height - SIZE + 1)
        sides.append((found.astype("float32") / 127.5 - 1, places))
    return tuple(sides)
