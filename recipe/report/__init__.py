"""What a reader sees: HTML pages, SVG charts, the loss curve, the comparison of base and adapter."""
