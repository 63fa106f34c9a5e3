"""Building blocks of the reports: HTML pages, SVG charts, the loss curve, the comparison of base and adapter."""
