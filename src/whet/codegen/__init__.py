"""From a kernel written in Python to machine code at an address; knows nothing of what the kernels compute."""
