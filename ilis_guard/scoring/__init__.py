"""Maps -> uncertainty: features, LightGBM, calibration, shift, and the bundle that holds a fitted scorer on disk."""

from ilis_guard.scoring.bundle import Bundle, BundleMetadata, TypicalMaps, read_bundle, write_bundle
from ilis_guard.scoring.scorer import LightGBMScorer, Scorer

__all__ = ["Bundle", "BundleMetadata", "LightGBMScorer", "Scorer", "TypicalMaps", "read_bundle", "write_bundle"]
