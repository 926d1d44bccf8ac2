"""Models as plain functions of arrays, the plan that everybody signs, and the wire."""
