"""Solvers. A solver is a pure function (schedule, range, NFE) -> `Tableau`; it never sees a network.

To add a solver, write one file here (a frozen dataclass that satisfies `Solver`) and one file in conf/solver.
"""
