"""``tidegate dashboard``: draws Grafana's dashboards without Grafana."""
