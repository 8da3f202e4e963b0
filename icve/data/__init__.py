"""Data: manifests, videos, buckets and the two training data modules."""
