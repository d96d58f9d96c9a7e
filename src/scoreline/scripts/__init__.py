"""The jobs of `scoreline train`, `scoreline sample` and `scoreline calibrate`."""
