"""Native code: a kernel in C++ for CPUs, compiled once a machine, where there is a compiler."""
