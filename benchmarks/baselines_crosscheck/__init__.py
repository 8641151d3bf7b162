"""Our unsupervised scores beside lm-polygraph's own estimators, on the same answers."""
