"""Forecasts: whether this machine can run a job, and how much time, memory and disk space the job takes."""
