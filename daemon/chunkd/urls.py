"""What the URL of a cache in object storage begins with. Each command imports this, so it imports nothing itself."""

# S3 and what speaks its protocol, Google's, Azure's.
OBJECT_STORES = ("s3://", "gs://", "az://")
