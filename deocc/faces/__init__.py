"""Finding faces in photos, cutting them out aligned, putting them back, and where on a face each pixel lies."""

from deocc.faces.crop import TEMPLATE_112, Crop, align, align_occlusion, paste_back
from deocc.faces.dense_field import DenseField, colour_field, dense_field
from deocc.faces.detector import Detector, Face
from deocc.faces.face_mesh import FaceMesh, FaceModel
from deocc.faces.morphable import MorphableModel, face_model

__all__ = [
    "TEMPLATE_112",
    "Crop",
    "DenseField",
    "Detector",
    "Face",
    "FaceMesh",
    "FaceModel",
    "MorphableModel",
    "align",
    "align_occlusion",
    "colour_field",
    "dense_field",
    "face_model",
    "paste_back",
]
