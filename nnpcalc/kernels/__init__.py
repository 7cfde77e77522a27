"""The fast path: tabulated radial functions and fused loops; same numbers as the eager models."""
