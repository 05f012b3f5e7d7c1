"""The figures as one HTML page. It must not know how they were requested."""
