"""Schedules: strictly increasing maps between the noise level rho and a coordinate u.

Everywhere in the package a state is in unit-signal coordinates, x = x_t / alpha_t = x_0 + rho eps, and
rho = sigma_t / alpha_t is the noise-to-signal ratio: EDM's sigma, SciRE's NSR, DEIS's rho. One kind of object serves as
the noise schedule of a process (t <-> rho), the spacing of solver steps, the variable of a solver's polynomial and the
training density (u uniform on [0, 1]).
"""
