"""The Triton kernels of `kernels/hstu_triton.py`, and what they are launched with."""
