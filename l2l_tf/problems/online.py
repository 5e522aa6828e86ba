"""Whether there is a network, for those who look before they download."""

import socket


def is_online():
    """Whether the host of TensorFlow's data sets and Keras' weights can be reached, in seconds."""
    try:
        socket.create_connection(("storage.googleapis.com", 443), timeout=5).close()
    except OSError:
        return False
    return True
