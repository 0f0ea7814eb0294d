"""Losses that more than one method uses."""

from deocc.losses.perceptual import LPIPS, StyleLoss

__all__ = ["LPIPS", "StyleLoss"]
