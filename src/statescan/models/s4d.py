"""S4D classifiers: those of S4 with a diagonal state matrix. Gu et al. 2022, arXiv 2206.11893.

The kernel is a Vandermonde product. Peculiar: the one-file example keeps B at one (`trainable_B=False`) and the other
sign of the imaginary part; its files are converted.
"""

from __future__ import annotations

from statescan.models.s4 import FAMILY_DIAGONAL, S4DClassifier, S4DConfig

__all__ = ["FAMILY", "S4DClassifier", "S4DConfig"]

FAMILY = FAMILY_DIAGONAL
