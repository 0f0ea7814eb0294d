"""Plain PyTorch and NumPy, written to be read: the specification of every operator, and what runs without a kernel."""
