"""Tillpact: retail brands learn together without pooling their customers' data."""
