"""Maps -> uncertainty: features, LightGBM, calibration, typicality, the bundle that holds them; risk control, drift."""

from ilis_guard.scoring.bundle import Bundle, BundleMetadata, TypicalMaps
from ilis_guard.scoring.bundle_files import read_bundle, write_bundle
from ilis_guard.scoring.drift import Drift, DriftTest
from ilis_guard.scoring.risk_control import Certificate, certify
from ilis_guard.scoring.scorer import LightGBMScorer, Scorer

__all__ = [
    "Bundle",
    "BundleMetadata",
    "Certificate",
    "Drift",
    "DriftTest",
    "LightGBMScorer",
    "Scorer",
    "TypicalMaps",
    "certify",
    "read_bundle",
    "write_bundle",
]
