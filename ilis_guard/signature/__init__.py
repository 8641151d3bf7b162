"""Activations -> L x L maps: where the MLPs are, the taps on them, their proof, the KL kernel, and the recorder."""

from ilis_guard.signature.kernel import signature_map
from ilis_guard.signature.layout import Layout, TapPoint, locate, pattern, register_layout
from ilis_guard.signature.proof import prove
from ilis_guard.signature.recorder import Recorder, Recording
from ilis_guard.signature.replay import read
from ilis_guard.signature.tap import Tap

__all__ = [
    "Layout",
    "Recorder",
    "Recording",
    "Tap",
    "TapPoint",
    "locate",
    "pattern",
    "prove",
    "read",
    "register_layout",
    "signature_map",
]
