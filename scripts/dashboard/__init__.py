"""The Grafana dashboard: what it shows (exits, load, health), and how that is written with Grafana's own library."""
