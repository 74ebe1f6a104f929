"""Write the dashboard: `make docs`."""

from pathlib import Path

from scripts.dashboard.build import page

FILE = Path(__file__).parents[2] / "docker" / "grafana" / "dashboards" / "msmlp.json"

if __name__ == "__main__":
    FILE.write_text(page())
