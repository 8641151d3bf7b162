"""Answers shown while they come: what a stream is made of, who reads it, and what they have been shown."""

from ilis_guard.streaming.pieces import Piece, Retraction, StreamEvent, StreamMode

__all__ = ["Piece", "Retraction", "StreamEvent", "StreamMode"]
