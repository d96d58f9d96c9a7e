"""The configuration of a job, read once from what Hydra composed into a frozen dataclass."""
