"""Losses that more than one method uses."""

from deocc.losses.perceptual import LPIPS

__all__ = ["LPIPS"]
