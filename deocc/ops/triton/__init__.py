"""Triton kernels of the operators whose GPU kernel is written in Triton; imported when first used on a GPU."""
