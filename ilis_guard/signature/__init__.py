"""Activations -> L x L maps: the layout of MLPs, taps on them, their proof, the KL kernel, and recordings."""

from ilis_guard.signature.kernel import signature_map
from ilis_guard.signature.layout import Layout, TapPoint, locate, pattern, register_layout
from ilis_guard.signature.proof import prove
from ilis_guard.signature.recorder import FindAnswer, Recorder, Recording, replay
from ilis_guard.signature.tap import Tap

__all__ = [
    "FindAnswer",
    "Layout",
    "Recorder",
    "Recording",
    "Tap",
    "TapPoint",
    "locate",
    "pattern",
    "prove",
    "register_layout",
    "replay",
    "signature_map",
]
