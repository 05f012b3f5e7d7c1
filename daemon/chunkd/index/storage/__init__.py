"""The environment itself: opening, locking, durability, and an audit of its pages."""
