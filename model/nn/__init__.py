"""The network: configuration, blocks, the cascade, and its serving form."""
