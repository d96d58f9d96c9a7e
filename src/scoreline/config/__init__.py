"""Everything about Hydra: each script reads its composed config once, into a frozen dataclass."""
