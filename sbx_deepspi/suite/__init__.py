"""Suites: many runs of RL Zoo's, on one machine or on many, and what they show together."""
