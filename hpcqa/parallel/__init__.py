"""Ranks: who am I, and how do we talk."""
