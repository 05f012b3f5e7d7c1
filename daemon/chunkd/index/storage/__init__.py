"""The environment itself: opened, locked, made durable and checked page by page."""
