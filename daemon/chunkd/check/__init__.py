"""Recounts every figure without trusting a counter. It must not know `ingest`, nor the writer's chunk table."""
