"""Whether this machine can do a job, and what the job will take, before anything runs or is written."""
