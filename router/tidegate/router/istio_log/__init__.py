"""The access log of Istio's proxies: evidence by request, and since when a split is in force."""
