"""Measure: guard what is due, make its row, measure once, say what came of it."""
