"""Commands of `scoreline`, one file each."""
