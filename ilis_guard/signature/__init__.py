"""Activations -> L x L maps: where the MLPs are, the taps on them, the KL kernel, and the recorder that joins them."""

from ilis_guard.signature.kernel import signature_map
from ilis_guard.signature.layout import locate_mlps
from ilis_guard.signature.recorder import Recorder, Recording
from ilis_guard.signature.tap import Tap

__all__ = ["Recorder", "Recording", "Tap", "locate_mlps", "signature_map"]
