"""hpcqa finds the bad exposures of a whole imaging survey on an HPC center."""

__version__ = "0.1.0"
