"""Solvers as tables. A solver is a pure function (schedule, range, NFE) -> Tableau; it never sees a network.

A new solver is one file here (a frozen dataclass that is a `Solver`) and one file in conf/solver.
"""
