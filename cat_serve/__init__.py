"""Serve one-step class-conditional image generators."""

__version__ = "0.1.0"
