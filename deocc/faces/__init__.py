"""Finding faces in photos, cutting them out aligned, and putting them back."""

from deocc.faces.crop import TEMPLATE_112, Crop, align, paste_back
from deocc.faces.detector import Detector, Face

__all__ = ["TEMPLATE_112", "Crop", "Detector", "Face", "align", "paste_back"]
