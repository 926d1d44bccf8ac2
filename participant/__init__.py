"""The participant: one brand's node, the only process with customer data."""
