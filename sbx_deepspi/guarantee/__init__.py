"""The bound on what an update can cost: its formulas, its numbers, its conditions, and the neighbourhood."""
