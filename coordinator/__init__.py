"""The coordinator: leads runs, adds up sums, witnesses logs. Sees no brand's own update."""
