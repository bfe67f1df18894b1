"""Encoders, torsos and heads."""
