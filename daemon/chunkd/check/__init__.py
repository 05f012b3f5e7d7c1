"""Every figure counted again without trusting a counter. It must not know `ingest`, nor the writer's chunk table."""
