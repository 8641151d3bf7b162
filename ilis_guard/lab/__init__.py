"""Offline work: harvest, fit, evaluate, report."""
