"""pytest settings of the benches: says which simulator and seed a run uses."""

from sim.runner import seed, simulator


def pytest_report_header() -> str:
    """One line at the top of the report, so that a log alone suffices to repeat a run."""
    return f"benches: SIM={simulator()} SEED={seed()}"
