"""The network: configuration, blocks, the cascade, and the form that is served."""
