"""The machine under a job: devices, threads, processes, memory, start-up, progress and seeded noise."""
